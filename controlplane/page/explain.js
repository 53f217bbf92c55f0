// What went wrong or came to an end, in words for the person at the page.

import { ApiError } from "./api.js";

/** @returns {[string, string]} a title and what to do about it */
export function explainSetup(error) {
  if (!(error instanceof ApiError)) {
    return ["The call could not be set up.", `The browser says: ${error.message ?? error}`];
  }
  switch (error.status) {
    case 0: return ["The server is not there.", error.message];
    case 401: return ["The server wants a key.", error.message];
    case 404: return ["No such backend.", error.message];
    case 429:
    case 503: return ["No room for another call.", withRetry(error)];
    default:
      if (error.status >= 500) return ["The server failed.", error.message];
      return ["The server refused the call.", error.message];
  }
}

function withRetry({ message, retryAfterS }) {
  return retryAfterS === null ? message : `${message} Try again in ${retryAfterS} s.`;
}

/** @param {string[]} candidates what the answer advertised, as "host:port" */
export function unreachable(candidates) {
  const where = candidates.length ? ` The edge listens on ${candidates.join(", ")}.` : "";
  return [
    "No path to the edge.",
    "The server answered, but no packet came through. A firewall may be blocking its UDP port, "
      + `or the server advertises an address that cannot be reached from here.${where}`,
  ];
}

export function notSecured() {
  return [
    "The path could not be secured.",
    "Packets arrive, but the DTLS handshake did not finish. Something between here and the "
      + "edge may let only part of the traffic through.",
  ];
}

/** Host and port of every UDP candidate in an answer. */
export function candidatesOf(answer) {
  const found = [...answer.matchAll(/^a=candidate:\S+ 1 udp \d+ (\S+) (\d+) /gim)]
    .map(([, host, port]) => (host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`));
  return [...new Set(found)];
}

/** By the admin API's backend_state. */
export const BACKEND_TROUBLE = {
  unavailable: "Nobody listens on the backend’s socket. The edge tries again until it comes.",
  refused: "The backend answered with something that the edge cannot serve.",
  lost: "The backend went away during the call. The edge tries again until it comes back.",
};

// The server's end reasons; and this page's own, where it knows better or the server is silent.
const REASONS = {
  hung_up_here: "You hung up.",
  hangup: "The call was hung up from elsewhere.",
  client_closed: "The browser closed the connection.",
  consent_expired: "The edge heard nothing from this browser for 30 seconds.",
  dtls_failed: "The handshake failed: the other side is not who it should be.",
  dtls_timeout: "The handshake took too long.",
  backend_stopped: "The backend ended the call.",
  never_connected: "No packet from this browser reached the edge.",
  transceiver_died: "The process that carried this call died. Others are not affected.",
  shutdown: "The server is being stopped.",
  time_limit: "The call reached its longest allowed length.",
  internal_error: "Something failed inside the edge.",
  microphone_lost: "The microphone was taken away.",
  ice: "The connection was lost.",
  dtls: "The connection was lost.",
  closed: "The other side closed the connection.",
};

// Where the server's own words add something.
const DETAILED = new Set(["dtls_failed", "backend_stopped", "internal_error"]);

/** @param {{reason: string, detail: string}} outcome */
export function explainEnd({ reason, detail }) {
  const sentence = REASONS[reason] ?? `The server says: ${reason}.`;
  return detail && DETAILED.has(reason) ? `${sentence} It says: ${detail}.` : sentence;
}
