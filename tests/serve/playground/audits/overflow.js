// Elements that stick out of the window and cannot be scrolled to inside of something.
() => {
  const scrolls = (element) => {
    for (let at = element.parentElement; at; at = at.parentElement)
      if (["auto", "scroll"].includes(getComputedStyle(at).overflowX) && at.id !== "scroller") return true;
    return false;
  };
  const wide = [...document.querySelectorAll("body *")].filter(
    (e) => e.checkVisibility() && !e.closest(".hidden, .skip") && !scrolls(e),
  );
  return wide
    .filter((e) => {
      const box = e.getBoundingClientRect();
      return box.right > innerWidth + 1 || box.left < -1;
    })
    .map((e) => e.outerHTML.slice(0, 150));
};
