// Loaded in <head> before any style, so that the chosen theme is there at the first paint.
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => { try { return localStorage.getItem("iiot-theme"); } catch { return null; } };
  const apply = () => {
    document.documentElement.dataset.bsTheme = stored() ?? (dark.matches ? "dark" : "light");
    dispatchEvent(new Event("iiot:theme"));
  };
  dark.addEventListener("change", apply);
  addEventListener("storage", (event) => { if (event.key === "iiot-theme") apply(); });
  apply();
})();
