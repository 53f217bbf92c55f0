// An echo without any library. Usage: node echo.mjs /path/to/echo.sock   (Node 18 or later)
//
// A frame is four bytes, type << 24 | length, big-endian, and then the payload.
// 24 kHz both ways, so that nothing needs resampling; see docs/backend-protocol.md.
import { createServer } from 'node:net';
import { lstatSync, rmSync } from 'node:fs';

const [START, READY, STOP, AUDIO, EVENT] = [0x01, 0x02, 0x0f, 0x10, 0x20];
const path = process.argv.at(-1);

function frame(type, payload) {
  const header = Buffer.alloc(4);
  header.writeUInt32BE(((type << 24) | payload.length) >>> 0);
  return Buffer.concat([header, payload]);
}

const server = createServer((edge) => {          // the edge connects once per call
  let bytes = Buffer.alloc(0);                   // a chunk may hold half a frame, or many
  edge.on('data', (chunk) => {
    bytes = Buffer.concat([bytes, chunk]);
    while (bytes.length >= 4 && bytes.length >= 4 + bytes.readUIntBE(1, 3)) {
      const type = bytes[0], payload = bytes.subarray(4, 4 + bytes.readUIntBE(1, 3));
      bytes = bytes.subarray(4 + payload.length);
      if (type === START) edge.write(frame(READY, Buffer.from('{"rate_in":24000,"rate_out":24000}')));
      else if (type === AUDIO || type === EVENT) edge.write(frame(type, payload));
      else if (type === STOP) edge.end();        // every other type is ignored
    }
  });
  edge.on('error', () => {});                    // the edge went away; 'close' follows
});

if (lstatSync(path, { throwIfNoEntry: false })?.isSocket()) rmSync(path);  // a predecessor's
process.umask(0o177);                            // the socket is for this user alone
server.listen(path);
for (const signal of ['SIGINT', 'SIGTERM']) {
  process.on(signal, () => server.close() && process.exit());  // close() removes the file
}
