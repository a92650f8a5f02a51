// The server as functions: `call` asks for JSON, `listen` tells of the server's events and of a lost
// connection.

// What the server refused (status 4xx, body: its JSON), or that it does not answer (status 0).
export class Failure extends Error {
  constructor(text, status, body) {
    super(text);
    Object.assign(this, {status, body});
  }
}

// Ask the server. body: an object to be sent as JSON, or a Blob as it is. Returns the answer's JSON. Throws:
// Failure.
export async function call(method, path, body, more = {}) {
  const raw = body instanceof Blob;
  const kind = raw ? "application/octet-stream" : "application/json";
  const headers = body === undefined ? {} : {"Content-Type": kind};
  let answer;
  try {
    answer = await fetch(path, {method, headers, body: raw ? body : JSON.stringify(body), ...more});
  } catch {
    throw new Failure("No connection to the studio.", 0, {});
  }
  const said = await answer.json().catch(() => ({error: `The studio answered ${answer.status}.`}));
  if (!answer.ok) throw new Failure(said.error, answer.status, said);
  return said;
}

// Listen to events for as long as the page lives. opened(again) when connected, lost(text) when not.
export function listen(heard, opened, lost) {
  let again = false;
  const source = new EventSource("/api/events");
  source.onmessage = event => heard(JSON.parse(event.data));
  source.onopen = () => { opened(again); again = true; };
  source.onerror = async () => {
    lost("Connection lost. Trying again …");
    if (source.readyState !== EventSource.CLOSED) return;        // else it tries again by itself
    const refused = await call("GET", "/api/state").then(() => null, failure => failure);
    if (refused?.status === 403) lost("The studio was started anew. Open the address that it printed.");
    else setTimeout(() => listen(heard, () => opened(true), lost), 2000);
  };
}
