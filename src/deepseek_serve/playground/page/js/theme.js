// Runs before the first paint, so that a chosen theme does not flash. Not a module, because modules wait.
(() => {
  try {
    const chosen = localStorage.getItem("deepseek.theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch {
    // Storage is closed to this page; the system's theme it is.
  }
})();
