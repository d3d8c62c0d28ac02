// Asks for an API key when the server wants one.

import { key } from "./api.js";
import { byId } from "./dom.js";

let asking = null;

/** Resolves to true when a key was entered. Several callers share one dialog. */
export function askKey(problem) {
  asking ??= ask(problem).finally(() => (asking = null));
  return asking;
}

function ask(problem) {
  const dialog = byId("key-dialog");
  const input = byId("key");
  byId("key-problem").textContent = problem || "Whoever runs this server can give you one.";
  byId("key-problem").classList.toggle("bad", Boolean(problem));
  input.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    let given = false;
    const submit = (event) => {
      event.preventDefault();
      const value = input.value.trim();
      if (!value) return;
      given = true;
      key.set(value);
      dialog.close();
    };
    byId("key-form").addEventListener("submit", submit);
    dialog.addEventListener(
      "close",
      () => {
        byId("key-form").removeEventListener("submit", submit);
        input.value = "";
        resolve(given);
      },
      { once: true },
    );
  });
}
