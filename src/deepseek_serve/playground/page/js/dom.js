// Making elements. There is no way here from a string to markup.

const SVG = "http://www.w3.org/2000/svg";

const ICONS = {
  rail: "M4 5h16M4 12h10M4 19h13",
  tune: "M4 7h9M17 7h3M4 17h3M11 17h9M15 4.5v5M9 14.5v5",
  code: "m8.5 7-5 5 5 5M15.5 7l5 5-5 5",
  theme: "M12 3.5a8.5 8.5 0 1 0 0 17zM12 3.5a8.5 8.5 0 0 1 0 17",
  plus: "M12 5v14M5 12h14",
  close: "M6 6l12 12M18 6 6 18",
  out: "M12 15V4m0 0L8 8m4-4 4 4M5 14v5h14v-5",
  in: "M12 4v11m0 0-4-4m4 4 4-4M5 14v5h14v-5",
  keyboard: "M3.5 7h17v10h-17zM7 10.5h.01M10.5 10.5h.01M14 10.5h.01M17 10.5h.01M8 14h8",
  down: "M12 5v13m0 0-5-5m5 5 5-5",
  send: "M12 19V5m0 0-6 6m6-6 6 6",
  stop: "M7 7h10v10H7z",
  image: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15.5 9h.01",
  audio: "M9.5 6.5a2.5 2.5 0 0 1 5 0v5a2.5 2.5 0 0 1-5 0zM6 11.5a6 6 0 0 0 12 0M12 17.5V21",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  edit: "M4 20l1-4.5L16 4.5l3.5 3.5L8.5 19zM14 6.5l3.5 3.5",
  trash: "M5 7h14M10 7V4.5h4V7M7 7l.8 12.5h8.4L17 7M10.5 10.5v6M13.5 10.5v6",
  retry: "M19.5 12a7.5 7.5 0 1 1-2.3-5.4M19.5 4v4h-4",
  more: "M5 12h12m0 0-4.5-4.5M17 12l-4.5 4.5M20 6v12",
  left: "m14 6-6 6 6 6",
  right: "m10 6 6 6-6 6",
};

/**
 * An element. Attributes: ``onclick`` and its like take functions, ``text`` sets the text, null and false leave out,
 * true is an empty attribute.
 */
export function h(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") made.textContent = value;
    else if (typeof value === "function") made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export function icon(name) {
  return svg("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("path", { d: ICONS[name] }));
}

export function iconButton(name, label, onclick, attributes = {}) {
  return h(
    "button",
    { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...attributes },
    icon(name),
  );
}

/** The element with this id; it must be in the page. */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found;
}

/** A short message at the bottom, with one thing to do about it at most. */
export function toast(text, action = null, seconds = 6) {
  const made = h("div", { class: "toast" }, h("span", { text }));
  const remove = () => made.remove();
  if (action) {
    const act = () => {
      remove();
      action.run();
    };
    made.append(h("button", { type: "button", text: action.label, onclick: act }));
  }
  const all = byId("toasts");
  all.append(made);
  while (all.children.length > 3) all.firstChild.remove();
  setTimeout(remove, seconds * 1000);
}

const unsaid = [];
let sayTimer = 0;

/** Say something to screen readers only. What comes within a moment is said together. */
export function announce(text) {
  unsaid.push(text);
  sayTimer ||= setTimeout(() => {
    sayTimer = 0;
    byId("announcer").replaceChildren(...unsaid.splice(0).map((line) => h("p", { text: line })));
  }, 400);
}

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // No clipboard outside of secure contexts (plain http to another machine): the old way.
    const area = h("textarea", { class: "hidden", "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
