// Keys that work anywhere on the page, and the dialog that lists them.

import { byId, h } from "./dom.js";

const isMac = /Mac|iPhone|iPad/.test(navigator.platform);
const CONTROL = isMac ? "⌘" : "Ctrl";

const LIST = [
  [["Enter"], "Send"],
  [["Shift", "Enter"], "New line"],
  [["Esc"], "Stop the answer; close what is open"],
  [[CONTROL, "K"], "New chat"],
  [["↑"], "Edit the last message (in an empty message box)"],
  [["/"], "Go to the message box"],
  [[CONTROL, "B"], "Conversations"],
  [[CONTROL, "."], "Settings"],
  [["↑", "↓", "F2", "Del"], "In the list of conversations: walk, rename, delete"],
  [["?"], "This list"],
];

/**
 * @param {object} on what each key does
 * @param {() => boolean} on.stop false if nothing was running
 * @param {() => boolean} on.isDrawerOpen closes open drawers; false if there was none
 */
export function shortcuts(on) {
  const dialog = byId("keys-dialog");
  byId("keys-list").append(
    ...LIST.flatMap(([keys, text]) => [
      h("dt", {}, ...keys.map((name) => h("kbd", { text: name }))),
      h("dd", { text }),
    ]),
  );
  document.querySelector(".shortcut-new").textContent = isMac ? "⌘K" : "Ctrl K";
  byId("keys-open").addEventListener("click", () => dialog.showModal());

  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.isComposing) return;
    if (document.querySelector("dialog[open]")) return; // a dialog's Esc is the browser's
    const act = actionOf(event, on, dialog);
    if (act && act() !== false) event.preventDefault();
  });
}

function actionOf(event, on, dialog) {
  if ((isMac ? event.metaKey : event.ctrlKey) && !event.altKey && !event.shiftKey) {
    return { k: on.fresh, b: on.rail, ".": on.panel }[event.key.toLowerCase()];
  }
  if (event.key === "Escape") return () => on.isDrawerOpen() || on.stop();
  const writing = event.target.closest?.("input, textarea, select");
  if (writing || event.ctrlKey || event.metaKey || event.altKey) return null;
  return { "/": on.compose, "?": () => dialog.showModal() }[event.key];
}
