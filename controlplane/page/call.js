// One call: from the offer to the end, with the moments that matter on the way.
//
//   offering ──▶ connecting ──▶ live ──▶ ending ──▶ ended
//       └────────────┴───────────┴──────────┴─────▶ failed
//
// Events dispatched: "state", "milestone", "remote", "message", "channel", "interrupted".

import { ApiError } from "./api.js";
import { candidatesOf, explainSetup, notSecured, unreachable } from "./explain.js";

// A browser gives up on ICE after 15 to 30 s; on a path that works, ICE and DTLS take well
// under one. Ten leaves room for a slow handset.
const CONNECT_LIMIT_MS = 10_000;
// How long the server may take to say why a call ended.
const REASON_LIMIT_MS = 2_000;
const REASON_POLL_MS = 100;
const WATCH_MS = 20;
// One Opus packet: what the browser sends from the moment it may.
const PACKET_MS = 20;

const pause = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

export class Call extends EventTarget {
  #api;
  #location = null;
  #channel = null;
  #connectTimer = 0;
  #startedAt = 0;
  #finishing = false;

  /**
   * @param {import("./api.js").Api} api
   * @param {string} backend
   * @param {MediaStream} stream with the microphone's track
   */
  constructor(api, backend, stream) {
    super();
    this.#api = api;
    this.backend = backend;
    this.stream = stream;
    this.state = "offering";
    this.id = "";
    /** Milliseconds from the start of the call, by name. @type {Record<string, number>} */
    this.milestones = {};
    /** Where the answer said to send, for messages. @type {string[]} */
    this.candidates = [];
    this.liveAt = 0;
    this.endedAt = 0;
    /** What ended it: {reason, detail, title, advice}. */
    this.outcome = null;
    // No ICE servers: the edge is on a public address and lives from peer-reflexive checks.
    this.connection = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
  }

  /** Runs the set-up. Problems end in the state "failed", never in a rejection. */
  async start() {
    this.#startedAt = performance.now();
    try {
      this.#prepare();
      const offer = await this.connection.createOffer();
      await this.connection.setLocalDescription(offer);
      this.#reach("offer");
      // Posted at once: candidates are neither awaited nor needed.
      const created = await this.#api.createCall(this.backend, this.connection.localDescription.sdp);
      this.#location = created.url;
      this.id = created.id;
      if (this.#finishing) return void this.#api.hangUp(created.url).catch(() => {});
      this.candidates = candidatesOf(created.answer);
      this.#reach("answer");
      await this.connection.setRemoteDescription({ type: "answer", sdp: created.answer });
      this.#to("connecting");
      this.#connectTimer = setTimeout(() => this.#notConnected(), CONNECT_LIMIT_MS);
      this.#watchTransports();
    } catch (error) {
      if (!this.#finishing) this.#fail(...explainSetup(error), error.status);
    }
  }

  /**
   * Ends the call from this side.
   * @param {string} why told instead of the server's reason, which is "hangup"
   */
  async hangUp(why = "hung_up_here") {
    if (this.#finishing) return;
    this.#finishing = true;
    this.#to("ending");
    let problem = null;
    if (this.#location) {
      try {
        await this.#api.hangUp(this.#location);
      } catch (error) {
        problem = error;
      }
    }
    const view = problem ? null : await this.#awaitReason();
    const reason = !view?.reason || view.reason === "hangup" ? why : view.reason;
    this.#close("ended", { reason, detail: view?.detail || "" });
  }

  /** What the server's view of this call says; it may be over there first. */
  heed(view) {
    if (view?.ended) void this.#endedElsewhere("closed");
  }

  /** For a page that goes away: nobody waits for an answer. */
  abandon() {
    if (this.#location && !this.#finishing) this.#api.hangUp(this.#location).catch(() => {});
  }

  /** Sends one event. @param {string} text JSON */
  send(text) {
    this.#channel.send(text);
  }

  get channelOpen() { return this.#channel?.readyState === "open"; }

  #prepare() {
    const { connection } = this;
    for (const track of this.stream.getAudioTracks()) connection.addTrack(track, this.stream);
    this.#channel = connection.createDataChannel("oai-events");
    this.#channel.binaryType = "arraybuffer";
    this.#channel.onopen = () => { this.#reach("channel"); this.#tell("channel"); };
    this.#channel.onclose = () => this.#tell("channel");
    this.#channel.onmessage = ({ data }) => this.#tell("message", data);
    connection.ontrack = ({ streams, track }) => {
      this.#tell("remote", streams[0] ?? new MediaStream([track]));
    };
    connection.oniceconnectionstatechange = () => this.#iceChanged();
    connection.onconnectionstatechange = () => this.#connectionChanged();
    for (const track of this.stream.getAudioTracks()) {
      track.onended = () => void this.hangUp("microphone_lost");
    }
  }

  #watchTransports() {
    const dtls = this.connection.getSenders()[0]?.transport;
    if (!dtls) return;
    const changed = () => {
      if (dtls.state === "connected") this.#secured();
      if (dtls.state === "closed") void this.#endedElsewhere("closed");
      if (dtls.state === "failed") void this.#endedElsewhere("dtls");
    };
    dtls.addEventListener("statechange", changed);
    changed();
  }

  #iceChanged() {
    const state = this.connection.iceConnectionState;
    if (state === "connected" || state === "completed") {
      this.#reach("ice");
      this.#tell("interrupted", false);
    } else if (state === "disconnected") {
      this.#tell("interrupted", true);
      void this.#watchInterruption();
    } else if (state === "failed") {
      if (this.liveAt) void this.#endedElsewhere("ice");
      else this.#notConnected();
    }
  }

  #connectionChanged() {
    const state = this.connection.connectionState;
    // Firefox tells of DTLS through this one alone.
    if (state === "connected") this.#secured();
    if (state === "closed") void this.#endedElsewhere("closed");
    if (state === "failed") void this.#endedElsewhere(this.milestones.ice === undefined ? "ice" : "dtls");
  }

  #secured() {
    if (this.liveAt || this.#finishing) return;
    clearTimeout(this.#connectTimer);
    this.#reach("ice");
    this.#reach("dtls");
    this.liveAt = performance.now();
    this.#to("live");
    void this.#watchFirstAudio();
  }

  /** Looks for the first packet sent and the first sound played, then stops looking. */
  async #watchFirstAudio() {
    const [sender] = this.connection.getSenders();
    const [receiver] = this.connection.getReceivers();
    const { milestones } = this;
    while (this.state === "live" && (milestones.out === undefined || milestones.in === undefined)) {
      if (milestones.in === undefined && receiver?.getSynchronizationSources().length) {
        this.#reach("in");
      }
      if (milestones.out === undefined) this.#reachFirstSent(await sender.getStats());
      await pause(WATCH_MS);
    }
  }

  #reachFirstSent(report) {
    for (const stat of report.values()) {
      if (stat.type !== "outbound-rtp" || !stat.packetsSent) continue;
      // Browsers hold reports back for tens of milliseconds, but date them, and a packet goes
      // out every 20 ms: so the first one left about this long ago.
      const at = stat.timestamp - performance.timeOrigin - (stat.packetsSent - 1) * PACKET_MS;
      const ms = Math.min(performance.now(), Math.max(at, this.liveAt)) - this.#startedAt;
      this.#reach("out", ms);
    }
  }

  /** While ICE is silent the server may know more: that the call is over, say. */
  async #watchInterruption() {
    while (this.connection.iceConnectionState === "disconnected" && !this.#finishing) {
      const view = await this.#api.call(this.id).catch(() => undefined);
      // Null: the server has even forgotten it.
      if (view === null || view?.ended) return void this.#endedElsewhere("ice");
      await pause(1_000);
    }
  }

  async #endedElsewhere(how) {
    if (this.#finishing) return;
    this.#finishing = true;
    const view = await this.#awaitReason();
    if (this.liveAt || view?.ended) {
      this.#close("ended", { reason: view?.reason || how, detail: view?.detail || "" });
    } else {
      this.#fail(...this.#notConnectedBecause());
    }
  }

  /** The server's view once it says that the call ended; what it says by then otherwise. */
  async #awaitReason() {
    const deadline = performance.now() + REASON_LIMIT_MS;
    let view = null;
    while (this.id && performance.now() < deadline) {
      try {
        view = await this.#api.call(this.id);
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        return null;
      }
      if (!view || (view.ended && view.reason)) return view;
      await pause(REASON_POLL_MS);
    }
    return view;
  }

  #notConnected() {
    if (this.#finishing) return;
    this.#finishing = true;
    if (this.#location) this.#api.hangUp(this.#location).catch(() => {});
    this.#fail(...this.#notConnectedBecause());
  }

  #notConnectedBecause() {
    return this.milestones.ice === undefined ? unreachable(this.candidates) : notSecured();
  }

  #fail(title, advice, status = null) {
    this.#finishing = true;
    this.#close("failed", { reason: "failed", detail: "", title, advice, status });
  }

  #close(state, outcome) {
    clearTimeout(this.#connectTimer);
    this.outcome = outcome;
    this.endedAt = performance.now();
    for (const track of this.stream.getTracks()) {
      track.onended = null;
      track.stop();
    }
    this.connection.close();
    this.#to(state);
    this.#tell("channel");
  }

  #reach(name, ms = performance.now() - this.#startedAt) {
    if (this.milestones[name] !== undefined) return;
    this.milestones[name] = ms;
    this.#tell("milestone", name);
  }

  #to(state) {
    this.state = state;
    this.#tell("state");
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
