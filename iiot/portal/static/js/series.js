// Pure work on series, without a page: joining, appending, ranges.

export const RANGES = { "15m": 900, "1h": 3600, "6h": 21600, "24h": 86400, "7d": 604800, "30d": 2592000 };

/** The newest points kept per signal while the page follows live data. */
export const MOST = 4000;

/** The query for a range: short ones as LTTB of the raw readings, long ones as averages of whole buckets. */
export function question(from, to) {
  const seconds = (to - from) / 1000;
  if (seconds <= 86400) return { agg: "lttb", limit: 2000 };
  const interval = seconds <= 8 * 86400 ? "10m" : seconds <= 62 * 86400 ? "1h" : "1d";
  return { agg: "avg", interval, limit: 2000 };
}

/** A reading as a number to draw: booleans as 0 and 1, anything else leaves a gap. */
export const drawable = (value) => (typeof value === "number" ? value : typeof value === "boolean" ? Number(value) : null);

/** [[ms, value], …] per key → [x in seconds, y1, y2, …]; where a series has no point at x it is undefined (uPlot draws through). */
export function join(keys, points) {
  const rows = new Map();
  keys.forEach((key, column) => {
    for (const [ms, value] of points[key] ?? []) {
      if (!rows.has(ms)) rows.set(ms, new Array(keys.length).fill(undefined));
      rows.get(ms)[column] = drawable(value);
    }
  });
  const xs = [...rows.keys()].sort((a, b) => a - b);
  return [xs.map((ms) => ms / 1000), ...keys.map((_, column) => xs.map((ms) => rows.get(ms)[column]))];
}

/** Merge new points into a sorted list: a timestamp that is there stays as it is, what falls before `from` goes. */
export function append(list, added, from) {
  const fresh = [...added].sort((a, b) => a[0] - b[0]);
  const inOrder = !list.length || !fresh.length || fresh[0][0] > list.at(-1)[0];
  const merged = inOrder ? list.concat(fresh) : [...new Map([...fresh, ...list].map((point) => [point[0], point])).values()].sort((a, b) => a[0] - b[0]);
  let first = 0;
  while (first < merged.length && merged[first][0] < from) first += 1;
  return merged.slice(Math.max(first, merged.length - MOST));
}

/** Which axis a number is measured on: by unit where units differ, else by size, so that a small signal is not a flat line below a large one. */
export function sides(keys, units, points) {
  const known = [...new Set(keys.map((key) => units[key]))];
  if (known.length > 1) return Object.fromEntries(keys.map((key) => [key, units[key] === known[0] ? "y" : "right"]));
  const size = (key) => (points[key] ?? []).reduce((most, [, value]) => Math.max(most, Math.abs(drawable(value) ?? 0)), 0);
  const largest = Math.max(...keys.map(size));
  return Object.fromEntries(keys.map((key) => [key, size(key) * 5 < largest ? "right" : "y"]));
}
