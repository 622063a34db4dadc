// Requests to the studio's server. All addresses are relative to the page's own, so any --prefix works.

/** What the server, or the network, answered in place of a result. */
export class Problem extends Error {
  constructor(status, code, message, facts = {}) {
    super(message);
    Object.assign(this, { status, code, facts });
  }
}

/** The address of a path below api/, with a query; null and undefined values are left out. */
export function address(path, query = {}) {
  const url = new URL(`api/${path}`, document.baseURI.split("#")[0]);
  for (const [name, value] of Object.entries(query)) {
    for (const one of [value].flat())
      if (one !== null && one !== undefined && one !== "") url.searchParams.append(name, one);
  }
  return url.href;
}

/** Reads JSON. */
export const get = (path, query = {}, signal = undefined) => ask(address(path, query), { signal });

/** Sends JSON and reads JSON. */
export const post = async (path, body, signal = undefined) => (await send(path, body, signal)).json();

/** Sends JSON; returns the response, for answers that stream. */
export const send = (path, body, signal = undefined) =>
  request(address(path), {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Jaxvlm": "studio" },
    body: JSON.stringify(body),
    signal,
  });

async function ask(url, options) {
  return (await request(url, options)).json();
}

async function request(url, options) {
  let response;
  try {
    response = await fetch(url, { credentials: "same-origin", cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "unreachable", String(error.message));
  }
  if (response.ok) return response;
  if (response.status === 401) dispatchEvent(new CustomEvent("logged-out"));
  let told = {};
  try {
    told = (await response.json()).error ?? {};
  } catch {
    /* not JSON: a proxy's page, say */
  }
  throw new Problem(
    response.status,
    told.code ?? `http_${response.status}`,
    told.message ?? response.statusText,
    told.facts,
  );
}
