// The data channel: a log of what came and went, and a field to send from.

const ENTRIES_AT_MOST = 200;
const CHARACTERS_AT_MOST = 4_000;

export class EventPanel {
  #log;
  #form;
  #text;
  #send;
  #problem;
  #note;
  #clock;

  /**
   * @param {Record<"log"|"form"|"text"|"send"|"problem"|"note", HTMLElement>} parts
   * @param {(text: string) => void} onSend given JSON
   */
  constructor(parts, onSend) {
    ({ log: this.#log, form: this.#form, text: this.#text, send: this.#send,
      problem: this.#problem, note: this.#note } = parts);
    this.#clock = () => 0;
    this.#text.addEventListener("input", () => { this.#problem.textContent = ""; });
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit(onSend);
    });
  }

  /** Empties the log for a new call. @param {() => number} clock seconds since its start */
  begin(clock) {
    this.#clock = clock;
    this.#log.replaceChildren();
    this.#problem.textContent = "";
  }

  /** @param {boolean} open whether events can be sent */
  setOpen(open) {
    this.#text.disabled = !open;
    this.#send.disabled = !open;
    this.#note.textContent = open ? "Data channel open" : "Data channel closed";
  }

  /** @param {string|ArrayBuffer} data as it came */
  received(data) {
    if (typeof data !== "string") {
      this.#add("in", "backend", `${data.byteLength} bytes, not text`);
      return;
    }
    this.#add("in", "backend", compact(data));
  }

  /** Says something of our own between the events. */
  note(text) {
    this.#add("note", "", text);
  }

  #submit(onSend) {
    const text = this.#text.value.trim();
    if (!text) return;
    try {
      JSON.parse(text);
    } catch (error) {
      this.#problem.textContent = `Not JSON: ${error.message}`;
      return;
    }
    try {
      onSend(text);
    } catch (error) {
      this.#problem.textContent = `Not sent: ${error.message}`;
      return;
    }
    this.#add("out", "you", compact(text));
    this.#text.value = "";
  }

  #add(way, who, body) {
    const log = this.#log;
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 24;
    const row = document.createElement("li");
    row.dataset.way = way;
    row.append(
      cell("time", "when", `${this.#clock().toFixed(2)} s`),
      cell("span", "who", who),
      cell("span", "body", body),
    );
    log.append(row);
    while (log.childElementCount > ENTRIES_AT_MOST) log.firstElementChild.remove();
    if (atEnd) log.scrollTop = log.scrollHeight;
  }
}

function cell(name, className, text) {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

/** JSON with a little air, on one line; other text as it is. Never endless. */
function compact(text) {
  let shown = text;
  try {
    shown = JSON.stringify(JSON.parse(text), null, 1).replace(/\n\s*/g, " ");
  } catch {
    // Not JSON: shown as it came.
  }
  const over = shown.length - CHARACTERS_AT_MOST;
  return over > 0 ? `${shown.slice(0, CHARACTERS_AT_MOST)} … (${over} characters more)` : shown;
}
