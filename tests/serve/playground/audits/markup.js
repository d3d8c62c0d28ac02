// What assistive tools and scripts would stumble over.
() => {
  const all = [...document.querySelectorAll("body *")];
  const ids = all.map((e) => e.id).filter(Boolean);
  const named = (e) =>
    (e.getAttribute("aria-label") || e.textContent || "").trim() ||
    e.labels?.length ||
    e.getAttribute("aria-labelledby");
  const targets = all
    .flatMap((e) =>
      ["aria-controls", "aria-describedby", "aria-labelledby"].flatMap((a) => (e.getAttribute(a) ?? "").split(" ")),
    )
    .filter(Boolean);
  return {
    twice: ids.filter((id, i) => ids.indexOf(id) !== i),
    nameless: all
      .filter((e) => e.matches("button, a, input, textarea, select, [role=region]") && !named(e))
      .map((e) => e.outerHTML),
    missing: targets.filter((id) => !document.getElementById(id)),
    landmarks: ["header", "nav", "main", "aside"].map((tag) => document.querySelectorAll(`.app > ${tag}`).length),
    headings: document.querySelectorAll("h1").length,
  };
};
