// The server's HTTP side, as far as this page needs it.

const KEY_ITEM = "earshot.key";

/** What the server refused, in its own words where it gave any. */
export class ApiError extends Error {
  /**
   * @param {string} message for the person
   * @param {number} status HTTP status; 0 when the server was not reached
   * @param {number|null} retryAfterS seconds, from Retry-After
   */
  constructor(message, status, retryAfterS = null) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.retryAfterS = retryAfterS;
  }
}

export class Api {
  #key;

  constructor() {
    // One tab's memory: a key typed here is gone with the tab.
    this.#key = sessionStorage.getItem(KEY_ITEM) ?? "";
  }

  get key() { return this.#key; }

  set key(value) {
    this.#key = value.trim();
    if (this.#key) sessionStorage.setItem(KEY_ITEM, this.#key);
    else sessionStorage.removeItem(KEY_ITEM);
  }

  /** Names of the backends, in the server's order. */
  async models() {
    const response = await this.#fetch("v1/models");
    const body = await response.json();
    return body.data.map((model) => model.id);
  }

  /**
   * Posts an offer.
   * @returns {Promise<{url: URL, id: string, answer: string}>}
   */
  async createCall(backend, offer) {
    const query = new URLSearchParams({ model: backend });
    const response = await this.#fetch(`v1/realtime/calls?${query}`, {
      method: "POST", headers: { "Content-Type": "application/sdp" }, body: offer,
    });
    const answer = await response.text();
    const url = new URL(response.headers.get("Location") ?? "", document.baseURI);
    const id = decodeURIComponent(url.pathname.split("/").filter(Boolean).pop() ?? "");
    return { url, id, answer };
  }

  /** Asks the server to end a call. Survives the page's own end. */
  async hangUp(url) {
    await this.#fetch(`${url.href}/hangup`, { method: "POST", keepalive: true });
  }

  /** The server's view of one call, or null when it knows none of that id. */
  async call(id) {
    try {
      const response = await this.#fetch(`admin/v1/calls/${encodeURIComponent(id)}`);
      return await response.json();
    } catch (error) {
      if (error instanceof ApiError && error.status === 404) return null;
      throw error;
    }
  }

  async #fetch(path, options = {}) {
    const url = new URL(path, document.baseURI);
    if (url.origin !== location.origin) {
      // The key goes to the server that served this page and nowhere else.
      throw new ApiError(`The server pointed to another one: ${url.origin}.`, 0);
    }
    const headers = new Headers(options.headers);
    if (this.#key) headers.set("Authorization", `Bearer ${this.#key}`);
    let response;
    try {
      response = await fetch(url, { ...options, headers, cache: "no-store" });
    } catch {
      throw new ApiError("The server does not answer. Is earshot still running?", 0);
    }
    if (!response.ok) throw await refusal(response);
    return response;
  }
}

/** Turns an answer that is not 2xx into an ApiError, whatever its body is. */
async function refusal(response) {
  const retryAfterS = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  let message = `${response.status} ${response.statusText}`.trim();
  try {
    const { error } = await response.json();
    if (typeof error?.message === "string" && error.message) message = error.message;
  } catch {
    // Not our JSON: a proxy's page, perhaps. The status says enough.
  }
  return new ApiError(message, response.status, Number.isNaN(retryAfterS) ? null : retryAfterS);
}
