// The server's API: addresses, keys, errors, and the stream of a chat completion.

const KEY = "deepseek.key";
let memoryKey = "";

export const address = (path) => new URL(path, document.baseURI).href;

/** The API key of this tab. It lives in sessionStorage and goes into one header only. */
export const key = {
  get: () => {
    try {
      return sessionStorage.getItem(KEY) ?? "";
    } catch {
      return memoryKey;
    }
  },
  set: (value) => {
    memoryKey = value;
    try {
      if (value) sessionStorage.setItem(KEY, value);
      else sessionStorage.removeItem(KEY);
    } catch {
      // Storage is closed to this page: the key lives as long as the page.
    }
  },
};

/**
 * Why a request failed. ``status`` 0: the server could not be reached; ``cut``: the answer broke off. Otherwise the
 * fields of the API's error body, and ``retryAfter`` in seconds if the server named a time.
 */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, param = null, retryAfter = null, cut = false } = {}) {
    super(message);
    Object.assign(this, { name: "ApiError", status, code, param, retryAfter, cut });
  }
}

async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(address(path), { ...options, headers });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError("The server cannot be reached.");
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

async function errorOf(response) {
  let body = null;
  try {
    body = (await response.json()).error;
  } catch {
    // Not from our API: a proxy between, perhaps.
  }
  return new ApiError(body?.message || `The server answered ${response.status} ${response.statusText}`.trim() + ".", {
    status: response.status,
    code: body?.code ?? null,
    param: body?.param ?? null,
    retryAfter: retryAfter(response.headers),
  });
}

function retryAfter(headers) {
  const value = headers.get("retry-after");
  if (!value) return null;
  const seconds = /^\d+$/.test(value) ? Number(value) : (Date.parse(value) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(0, seconds) : null;
}

/** The cards of ``GET /v1/models``. */
export async function models() {
  const body = await (await request("v1/models")).json();
  return Array.isArray(body.data) ? body.data.filter((card) => typeof card?.id === "string") : [];
}

export async function metrics(signal) {
  return (await request("metrics", { signal })).text();
}

/**
 * Send a chat completion and yield its events as they come: ``{wait: true}`` for a keep-alive comment, else a chunk.
 * Throws {@link ApiError}; an abort of ``signal`` throws AbortError.
 */
export async function* chat(body, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  const decoder = new TextDecoder();
  const reader = response.body.getReader();
  let rest = "";
  try {
    for (;;) {
      let part;
      try {
        part = await reader.read();
      } catch (error) {
        if (signal.aborted) throw error;
        throw new ApiError("The connection was lost in the middle of the answer.", { cut: true });
      }
      if (part.done) throw new ApiError("The answer broke off before its end.", { cut: true });
      const lines = (rest + decoder.decode(part.value, { stream: true })).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith(":")) yield { wait: true };
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        yield chunkOf(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function chunkOf(data) {
  let chunk;
  try {
    chunk = JSON.parse(data);
  } catch {
    throw new ApiError("The server sent something that is not JSON.", { cut: true });
  }
  if (chunk.error) {
    throw new ApiError(chunk.error.message ?? "The server failed.", {
      status: 500,
      code: chunk.error.code,
      param: chunk.error.param,
      cut: true,
    });
  }
  return chunk;
}

/** What a person is told about an error: a heading, a text, and what can be done. */
export function explain(error) {
  if (!(error instanceof ApiError))
    return { title: "Something went wrong in this page", text: String(error?.message ?? error) };
  const text = error.message;
  if (error.cut) return { title: "The answer broke off", text, retry: true };
  switch (error.status) {
    case 0:
      return { title: "No connection", text: `${text} Is it still running?`, retry: true };
    case 401:
      return { title: "A key is needed", text, needsKey: true };
    case 402:
      return { title: "The quota of this key is used up", text };
    case 404:
      return { title: "Not found", text };
    case 413:
      return { title: "The conversation is too large", text };
    case 429:
      return { title: "Too many requests", text, retry: true, wait: error.retryAfter ?? 5 };
    case 503:
      return { title: "The server is busy", text, retry: true, wait: error.retryAfter ?? 5 };
    default:
      if (error.status >= 500) return { title: "The server failed", text, retry: true };
      if (error.code === "context_length_exceeded")
        return { title: "The conversation is too long for this model", text };
      return { title: "The server refused this request", text, param: error.param };
  }
}
