// The microphone: asking for it, and saying plainly why it cannot be had.

/** A microphone that cannot be used: a title and what to do about it. */
export class MicrophoneError extends Error {
  constructor(title, advice, code) {
    super(title);
    this.name = "MicrophoneError";
    this.advice = advice;
    this.code = code;
  }
}

/**
 * Opens the microphone.
 * @param {{deviceId: string, echoCancellation: boolean, noiseSuppression: boolean,
 *   autoGainControl: boolean}} settings
 * @returns {Promise<MediaStream>} with one audio track
 */
export async function openMicrophone(settings) {
  if (!window.isSecureContext || !navigator.mediaDevices) {
    throw new MicrophoneError(
      "This address is not secure enough for a microphone.",
      `Browsers lend the microphone only to pages from https:// or from localhost, and this one
       came from ${location.origin}. Open it through https, or on the machine itself at
       http://localhost.`,
      "insecure",
    );
  }
  const { deviceId, ...processing } = settings;
  const audio = { channelCount: 1, ...processing };
  if (deviceId) audio.deviceId = { exact: deviceId };
  try {
    return await navigator.mediaDevices.getUserMedia({ audio, video: false });
  } catch (error) {
    throw explain(error);
  }
}

/** Microphones by label. Labels are known once permission was given. */
export async function listMicrophones() {
  const devices = await navigator.mediaDevices?.enumerateDevices?.() ?? [];
  return devices
    .filter((device) => device.kind === "audioinput" && device.deviceId && device.label)
    .map(({ deviceId, label }) => ({ deviceId, label }));
}

function explain(error) {
  switch (error.name) {
    case "NotAllowedError":
    case "SecurityError":
      return new MicrophoneError(
        "The microphone was refused.",
        `Without it there is nothing to send. Allow the microphone for ${location.host} in the
         browser’s site settings (the symbol at the left of the address), check that the
         system lets the browser use it, then press Talk again.`,
        "refused",
      );
    case "NotFoundError":
      return new MicrophoneError(
        "No microphone was found.",
        "Plug one in or switch one on, then press Talk again.",
        "absent",
      );
    case "OverconstrainedError":
      return new MicrophoneError(
        "That microphone is gone.",
        "Choose another one under Microphone settings, then press Talk again.",
        "absent",
      );
    case "NotReadableError":
    case "AbortError":
      return new MicrophoneError(
        "The microphone is busy.",
        "Another program or tab seems to hold it. Close that one, then press Talk again.",
        "busy",
      );
    default:
      return new MicrophoneError("The microphone does not work.", String(error), "unknown");
  }
}
