// WCAG 2: the contrast of every visible text and icon with what is painted behind it.
() => {
  const rgba = (text) => {
    const found = text.match(/[\d.]+/g).map(Number);
    return found.length < 4 ? [...found, 1] : found;
  };
  const over = (top, bottom) => top.slice(0, 3).map((c, i) => c * top[3] + bottom[i] * (1 - top[3]));
  const light = (rgb) => {
    const [r, g, b] = rgb.map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const layers = (element) => {
    const found = [];
    for (let at = element; at; at = at.parentElement) found.push(at);
    return found;
  };
  const behind = (element) =>
    layers(element)
      .reverse()
      .reduce((below, at) => over(rgba(getComputedStyle(at).backgroundColor), below), [255, 255, 255]);
  const opacity = (element) => layers(element).reduce((all, at) => all * Number(getComputedStyle(at).opacity), 1);
  const ratio = (element, colour) => {
    const back = behind(element);
    const front = rgba(colour);
    front[3] *= opacity(element);
    const [a, b] = [light(over(front, back)), light(back)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };
  const visible = (element) =>
    element.checkVisibility({ visibilityProperty: true }) &&
    element.getClientRects().length &&
    !element.closest(".hidden");
  const poor = [];
  let seen = 0;
  for (const element of document.querySelectorAll("body *")) {
    if (!visible(element) || element.closest("[aria-disabled=true], :disabled")) continue;
    const style = getComputedStyle(element);
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (element.matches("svg.icon")) {
      seen++;
      if (ratio(element, style.stroke) < 3)
        poor.push(["icon", element.parentElement.outerHTML.slice(0, 120), ratio(element, style.stroke)]);
    } else if (own && !element.matches("option")) {
      seen++;
      const size = parseFloat(style.fontSize);
      const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
      const found = ratio(element, style.color);
      if (found < (large ? 3 : 4.5)) poor.push([element.className, element.textContent.slice(0, 60), found]);
    }
    if (element.placeholder) {
      const found = ratio(element, getComputedStyle(element, "::placeholder").color);
      if (found < 4.5) poor.push(["placeholder", element.placeholder, found]);
    }
  }
  return { poor, seen, paper: behind(document.body) };
};
