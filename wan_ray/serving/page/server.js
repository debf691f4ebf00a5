// What the page asks of /v1, with the API key where one is needed.

const KEY = "wan_ray_api_key";

/** The server's answer was an error: status 0 when there was no answer. */
export class ServerError extends Error {
  constructor(status, error, retryAfter) {
    super(error?.message ?? "");
    this.status = status;
    this.code = error?.code ?? null;
    this.param = error?.param ?? null;
    this.retryAfter = retryAfter;
  }
}

let askForKey = async () => null;
let asking = null;

/** ask(wrong) comes back with a key, or null; wrong: the server did not know the last one. */
export function whenKeyIsNeeded(ask) {
  askForKey = ask;
}

export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** The response of a call that went well; asks for a key when the server wants one. Throws ServerError. */
async function call(path, init = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...init.headers, ...(key && { authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...init, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, null);
  }
  if (response.ok) return response;
  if (response.status === 401) {
    // Calls that are refused together ask once; a key that came meanwhile is tried first.
    if (sessionStorage.getItem(KEY) === key) {
      asking ??= askForKey(key !== null).finally(() => { asking = null; });
      setKey(await asking ?? key);
      if (sessionStorage.getItem(KEY) === key) throw new ServerError(401, (await body(response)).error);
    }
    return call(path, init);
  }
  throw new ServerError(response.status, (await body(response)).error, response.headers.get("retry-after"));
}

async function body(response) {
  try {
    return await response.json();
  } catch {
    return {};
  }
}

const json = async (path, init) => (await call(path, init)).json();
const place = (id) => `/v1/videos/${encodeURIComponent(id)}`;

export const offered = () => json("/page/options.json");
export const queue = () => json("/page/queue.json");
export const createVideo = (form) => json("/v1/videos", { method: "POST", body: form });
export const cancelVideo = (id) => json(`${place(id)}/cancel`, { method: "POST" });
export const deleteVideo = (id) => json(place(id), { method: "DELETE" });
export const retrieveVideo = (id) => json(place(id));
export const remixVideo = (id, prompt) => json(`${place(id)}/remix`, {
  method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ prompt }),
});

/** A page of videos, newest first, behind the one with the id `after`. */
export function listVideos(limit, after) {
  const query = new URLSearchParams({ limit, order: "desc", ...(after && { after }) });
  return json(`/v1/videos?${query}`);
}

/** The bytes of a finished video as a Blob; variant: "video", "thumbnail" or "spritesheet". */
export async function content(id, variant) {
  return (await call(`${place(id)}/content?variant=${variant}`)).blob();
}

/** Each state of a video as the server sends it, until it ends. (EventSource could send no key.) */
export async function* states(id, signal) {
  const response = await call(`${place(id)}/events`, { headers: { accept: "text/event-stream" }, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value.replaceAll("\r\n", "\n");
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      const data = event.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim());
      if (data.length === 0) continue;
      let video;
      try {
        video = JSON.parse(data.join("\n"));
      } catch {
        continue;
      }
      if (video.status) yield video;
    }
  }
}
