// How a reading is written: the same rules as the filter `reading` of the templates.

/** Number with at most 6 significant digits, on/off as words, text as it is, the rest as JSON; cut at 120 characters. */
export function format(value) {
  if (typeof value === "number") return Number.isInteger(value) && Math.abs(value) < 1e15 ? value.toLocaleString("en") : short(value);
  if (typeof value === "boolean") return value ? "true" : "false";
  const text = typeof value === "string" ? value : JSON.stringify(value);
  return text.length > 120 ? `${text.slice(0, 119)}…` : text;
}

function short(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e9)) return value.toExponential(3);
  return value.toLocaleString("en", { maximumSignificantDigits: 6 });
}
