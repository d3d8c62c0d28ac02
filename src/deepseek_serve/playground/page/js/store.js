// Conversations and choices in localStorage. Nothing is sent anywhere.

import { newId, readConversation, titleOf } from "./tree.js";

const INDEX = "deepseek.chats";
const CHAT = "deepseek.chat.";
const memory = new Map();

/** localStorage, or this page's memory where a browser keeps it shut. */
const shelf = {
  get(name) {
    try {
      return localStorage.getItem(name);
    } catch {
      return memory.get(name) ?? null;
    }
  },
  /** False if there is no more room. */
  set(name, value) {
    try {
      localStorage.setItem(name, value);
      return true;
    } catch (error) {
      if (error?.name === "QuotaExceededError") return false;
      memory.set(name, value);
      return true;
    }
  },
  remove(name) {
    try {
      localStorage.removeItem(name);
    } catch {
      memory.delete(name);
    }
  },
};

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** [{id, title, updated}], newest first. */
export function list() {
  const found = parse(shelf.get(INDEX));
  if (!Array.isArray(found)) return [];
  return found
    .filter(
      (entry) => typeof entry?.id === "string" && typeof entry.title === "string" && Number.isFinite(entry.updated),
    )
    .sort((a, b) => b.updated - a.updated);
}

export function load(id) {
  return readConversation(parse(shelf.get(CHAT + id)));
}

/** Keep a conversation that has messages. False if the browser has no room left. */
export function save(chat) {
  if (!Object.keys(chat.messages).length && !chat.named) return true;
  if (!shelf.set(CHAT + chat.id, JSON.stringify(chat))) return false;
  const others = list().filter((entry) => entry.id !== chat.id);
  return shelf.set(INDEX, JSON.stringify([{ id: chat.id, title: titleOf(chat), updated: chat.updated }, ...others]));
}

export function remove(id) {
  shelf.remove(CHAT + id);
  shelf.set(INDEX, JSON.stringify(list().filter((entry) => entry.id !== id)));
}

/** Everything, for a file. */
export function exported() {
  const chats = list()
    .map((entry) => load(entry.id))
    .filter(Boolean);
  return { format: "deepseek-playground", version: 1, exported: new Date().toISOString(), chats };
}

/**
 * Add the conversations of a file; one that is here already is added again beside it.
 * Returns how many. Throws an Error with a readable reason.
 */
export function imported(content) {
  const raw = parse(content);
  if (raw?.format !== "deepseek-playground" || !Array.isArray(raw.chats))
    throw new Error("This file holds no conversations of this playground.");
  const known = new Set(list().map((entry) => entry.id));
  let count = 0;
  for (const found of raw.chats) {
    const chat = readConversation(found);
    if (!chat) continue;
    if (known.has(chat.id)) chat.id = newId();
    if (!save(chat)) throw new Error(`The browser's storage is full; ${count} conversations were added.`);
    count++;
  }
  if (!count) throw new Error("This file holds no conversation that can be read.");
  return count;
}

export const choice = {
  get: (name, fallback = "") => shelf.get(`deepseek.${name}`) ?? fallback,
  set: (name, value) => (value ? shelf.set(`deepseek.${name}`, value) : shelf.remove(`deepseek.${name}`)),
};

/** Call ``changed(id or null)`` when another tab has changed a conversation, or the list. */
export function watch(changed) {
  window.addEventListener("storage", (event) => {
    if (event.key?.startsWith(CHAT)) changed(event.key.slice(CHAT.length));
    else if (event.key === INDEX || event.key === null) changed(null);
  });
}
