// Asking and answering: one running answer per conversation, with its retries. Knows nothing of the page.

import { ApiError, chat as stream, explain } from "./api.js";
import { bodyOf } from "./request.js";
import { append, prune, select } from "./tree.js";

const MAX_ATTEMPTS = 6;
const SAVE_EVERY = 1000; // ms while an answer grows

/**
 * @typedef {object} Listener
 * @property {(chat) => void} changed messages came, went, or another branch is shown
 * @property {(chat, message) => void} grew the running answer changed
 * @property {(chat, message) => void} ended
 * @property {(chat) => void} keep write the conversation down
 * @property {(error: ApiError) => Promise<boolean>} askKey resolves to true when there is a new key
 */
export class Session {
  /** @param {Listener} listener */
  constructor(listener) {
    this.listener = listener;
    this.live = new Map(); // conversation id -> {chat, answer, controller, phase, ...}
  }

  /** The answer that is running in this conversation, if one is. */
  running(chat) {
    return this.live.get(chat.id) ?? null;
  }

  send(chat, text) {
    append(chat, { role: "user", content: text });
    return this.answer(chat);
  }

  /** Ask again with a changed message, on a branch beside the old one. */
  edit(chat, message, text) {
    append(chat, { role: "user", content: text }, message.parent);
    return this.answer(chat);
  }

  /** Another answer to the same message. */
  again(chat, message) {
    chat.head = message.parent;
    return this.answer(chat);
  }

  /** A failed answer once more, in its place. */
  retry(chat, message) {
    if (message.content || message.reasoning) return this.again(chat, message);
    return this.run(chat, message, { head: message.parent });
  }

  /** Go on where an answer was cut off: the server takes the last message as the beginning of its answer. */
  resume(chat, message) {
    return this.run(chat, message, { head: message.id, prefix: true });
  }

  /** End the answer, or the waiting for the next attempt. */
  stop(chat) {
    const run = this.live.get(chat.id);
    run?.controller.abort();
    run?.wake?.();
  }

  /** Stop, and write nothing down any more: the conversation is deleted. */
  discard(chat) {
    const run = this.live.get(chat.id);
    if (run) run.discarded = true;
    this.stop(chat);
  }

  remove(chat, message) {
    this.stop(chat);
    prune(chat, message.id);
    this.touch(chat);
  }

  show(chat, message) {
    select(chat, message.id);
    this.touch(chat);
  }

  answer(chat) {
    const question = chat.head;
    const answer = append(chat, {
      role: "assistant",
      model: chat.model,
      reasoning: "",
      calls: [],
      figures: {},
      finish: null,
    });
    return this.run(chat, answer, { head: question });
  }

  touch(chat) {
    chat.updated = Date.now();
    this.listener.keep(chat);
    this.listener.changed(chat);
  }

  /** Send, read, and retry while the server asks to come back. Never throws. */
  async run(chat, answer, options) {
    if (this.live.has(chat.id)) return;
    const run = {
      chat,
      answer,
      controller: new AbortController(),
      phase: "sending",
      began: performance.now(),
      attempt: 1,
      until: 0,
      saved: Date.now(),
    };
    this.live.set(chat.id, run);
    answer.finish = null;
    delete answer.problem;
    this.touch(chat);
    try {
      while (!(await this.attempt(run, bodyOf(chat, options)))) run.attempt++;
    } finally {
      this.live.delete(chat.id);
      if (!run.discarded) this.touch(chat);
      this.listener.ended(chat, answer);
    }
  }

  /** One request. True if that is the end of it. */
  async attempt(run, body) {
    const { answer, controller } = run;
    delete answer.problem;
    Object.assign(run, { phase: "sending", began: performance.now(), first: 0, pieces: 0 });
    this.listener.grew(run.chat, answer);
    try {
      for await (const event of stream(body, controller.signal)) this.take(run, event);
      return true;
    } catch (error) {
      if (controller.signal.aborted) {
        answer.finish = "stopped";
        return true;
      }
      return this.fail(run, error);
    } finally {
      if (run.first) answer.figures.total = (performance.now() - run.began) / 1000;
      if (run.first && !answer.figures.completion) answer.figures.perSecond = this.speed(run, run.pieces);
    }
  }

  take(run, event) {
    const { answer } = run;
    if (event.wait) {
      run.phase = "queued";
      this.listener.grew(run.chat, answer);
      return;
    }
    const choice = event.choices?.[0];
    const delta = choice?.delta ?? {};
    const text = typeof delta.content === "string" ? delta.content : "";
    const reasoning = typeof delta.reasoning_content === "string" ? delta.reasoning_content : "";
    if (text || reasoning || delta.tool_calls) {
      run.last = performance.now();
      if (!run.first) {
        run.first = run.last;
        answer.figures = { firstToken: (run.first - run.began) / 1000 };
        run.phase = "streaming";
      }
      run.pieces++;
      answer.content += text;
      answer.reasoning += reasoning;
      for (const call of delta.tool_calls ?? []) addCall(answer.calls, call);
      run.speed = this.speed(run, run.pieces);
    }
    if (choice?.finish_reason) answer.finish = choice.finish_reason;
    if (event.usage) this.count(run, event.usage);
    this.listener.grew(run.chat, answer);
    if (Date.now() - run.saved > SAVE_EVERY && !run.discarded) {
      run.saved = Date.now();
      this.listener.keep(run.chat);
    }
  }

  count(run, usage) {
    const { figures } = run.answer;
    figures.prompt = usage.prompt_tokens;
    figures.cached = usage.prompt_tokens_details?.cached_tokens ?? usage.prompt_cache_hit_tokens ?? 0;
    figures.completion = usage.completion_tokens;
    figures.reasoning = usage.completion_tokens_details?.reasoning_tokens ?? 0;
    const speed = this.speed(run, usage.completion_tokens);
    if (speed) figures.perSecond = speed;
  }

  /** Tokens per second after the first one. */
  speed(run, tokens) {
    const seconds = (run.last - run.first) / 1000;
    return tokens > 1 && seconds > 0.05 ? (tokens - 1) / seconds : 0;
  }

  async fail(run, error) {
    const { answer, controller } = run;
    const told = explain(error);
    const problem = { title: told.title, text: told.text, retry: Boolean(told.retry), param: told.param ?? null };
    answer.problem = problem;
    if (told.needsKey) {
      this.listener.grew(run.chat, answer);
      problem.retry = true;
      return !(await this.listener.askKey(error));
    }
    if (told.wait === undefined || run.attempt >= MAX_ATTEMPTS) return true;
    run.phase = "waiting";
    run.until = Date.now() + Math.max(told.wait, 1) * 1000;
    while (Date.now() < run.until && !controller.signal.aborted && run.phase === "waiting") {
      this.listener.grew(run.chat, answer);
      await new Promise((resolve) => {
        run.wake = resolve;
        setTimeout(resolve, Math.min(1000, run.until - Date.now()));
      });
    }
    return controller.signal.aborted;
  }

  /** Do not wait any longer before the next attempt. */
  retryNow(chat) {
    const run = this.live.get(chat.id);
    if (run?.phase !== "waiting") return;
    run.until = 0;
    run.wake?.();
  }
}

/** Tool calls come in pieces: the first has id and name, all have some of the arguments. */
function addCall(calls, piece) {
  const index = piece.index ?? calls.length;
  if (!Number.isInteger(index) || index < 0 || index > 127) return;
  while (calls.length <= index) calls.push({ id: "", name: "", arguments: "" });
  const call = calls[index];
  if (piece.id) call.id = piece.id;
  if (piece.function?.name) call.name += piece.function.name;
  call.arguments += piece.function?.arguments ?? "";
}
