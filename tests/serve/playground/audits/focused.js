// What has the focus, how it is called, and whether that can be seen.
() => {
  const at = document.activeElement;
  if (!at || at === document.body) return null;
  const style = getComputedStyle(at);
  const box = at.getBoundingClientRect();
  const around = at.closest(".composer-box");
  const name =
    at.getAttribute("aria-label") ||
    (at.getAttribute("aria-labelledby") ?? "")
      .split(" ")
      .map((id) => document.getElementById(id)?.textContent)
      .join(" ") ||
    at.labels?.[0]?.textContent ||
    at.textContent ||
    at.title;
  return {
    id: at.id,
    tag: at.tagName,
    label: name.trim(),
    ring:
      (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2) ||
      (around && getComputedStyle(around).boxShadow !== "none"),
    inside: box.right > 0 && box.left < innerWidth && box.bottom > 0 && box.top < innerHeight,
  };
};
