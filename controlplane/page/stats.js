// getStats, once a second, boiled down to what a person wants to know.

export const SAMPLE_MS = 1_000;

/**
 * @typedef {object} Sample
 * @property {number|null} roundTripMs
 * @property {number|null} lossInPercent of the last interval
 * @property {number|null} lossOutPercent what the far end reports
 * @property {number|null} lostIn packets, in all
 * @property {number|null} lostOut packets, in all
 * @property {number|null} jitterBufferMs mean of the last interval
 * @property {number|null} jitterMs
 * @property {number|null} kbpsIn
 * @property {number|null} kbpsOut
 * @property {string} codec
 * @property {string} cipher
 * @property {string} path local → remote
 */

/** Samples one connection; keeps the last report for the differences. */
export class StatsSampler {
  #connection;
  #last = null;

  /** @param {RTCPeerConnection} connection */
  constructor(connection) {
    this.#connection = connection;
  }

  /** @returns {Promise<Sample>} */
  async sample() {
    const current = select(await this.#connection.getStats());
    const sample = summarise(current, this.#last ?? {});
    this.#last = current;
    return sample;
  }
}

/** Picks the few reports that matter out of the many. */
function select(report) {
  const all = [...report.values()];
  const audio = (type) => all.find((stat) => stat.type === type && stat.kind === "audio");
  const transport = all.find((stat) => stat.type === "transport");
  const pair = report.get(transport?.selectedCandidatePairId)
    // Firefox has no transport report; it marks the pair.
    ?? all.find((stat) => stat.type === "candidate-pair" && stat.selected)
    ?? all.find((stat) => stat.type === "candidate-pair" && stat.nominated && stat.state === "succeeded");
  const inbound = audio("inbound-rtp");
  const outbound = audio("outbound-rtp");
  return {
    transport, pair, inbound, outbound,
    remoteInbound: audio("remote-inbound-rtp"),
    codec: report.get(inbound?.codecId) ?? report.get(outbound?.codecId),
    local: report.get(pair?.localCandidateId),
    remote: report.get(pair?.remoteCandidateId),
  };
}

function summarise(now, last) {
  const { inbound, outbound, remoteInbound, pair } = now;
  const received = delta(now, last, "inbound", "packetsReceived");
  const lost = delta(now, last, "inbound", "packetsLost");
  const emitted = delta(now, last, "inbound", "jitterBufferEmittedCount");
  const delayS = delta(now, last, "inbound", "jitterBufferDelay");
  return {
    // Firefox rounds the pair's to whole milliseconds, so that a short one reads nought.
    roundTripMs: milliseconds(pair?.currentRoundTripTime || remoteInbound?.roundTripTime),
    lossInPercent: received + lost > 0 ? (100 * Math.max(0, lost)) / (received + lost) : null,
    lossOutPercent: remoteInbound?.fractionLost === undefined ? null : 100 * remoteInbound.fractionLost,
    lostIn: inbound?.packetsLost ?? null,
    lostOut: remoteInbound?.packetsLost ?? null,
    jitterBufferMs: emitted > 0 ? (1_000 * delayS) / emitted : null,
    jitterMs: milliseconds(inbound?.jitter),
    kbpsIn: rate(now, last, "inbound", "bytesReceived"),
    kbpsOut: rate(now, last, "outbound", "bytesSent"),
    codec: describeCodec(now.codec),
    cipher: now.transport?.srtpCipher ?? "",
    path: describePath(now),
    packetsIn: inbound?.packetsReceived ?? 0,
    packetsOut: outbound?.packetsSent ?? 0,
  };
}

const milliseconds = (seconds) => (seconds === undefined ? null : 1_000 * seconds);

function delta(now, last, part, name) {
  return (now[part]?.[name] ?? 0) - (last[part]?.[name] ?? 0);
}

function rate(now, last, part, name) {
  const elapsedMs = (now[part]?.timestamp ?? 0) - (last[part]?.timestamp ?? 0);
  if (!now[part] || !last[part] || elapsedMs <= 0) return null;
  return (8 * delta(now, last, part, name)) / elapsedMs;
}

function describeCodec(codec) {
  if (!codec) return "";
  const name = codec.mimeType.replace(/^audio\//i, "");
  return `${name === "opus" ? "Opus" : name}, ${codec.clockRate / 1_000} kHz`;
}

function describePath({ local, remote, pair }) {
  if (!remote) return "";
  const place = ({ address, ip, port }) => {
    const host = address ?? ip;
    // A browser may keep its own address to itself.
    if (!host) return "this browser";
    return host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
  };
  const protocol = (remote.protocol ?? pair.protocol ?? "").toUpperCase();
  return `${local ? place(local) : "this browser"} → ${place(remote)} ${protocol}`.trim();
}
