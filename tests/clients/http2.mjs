// HTTP/2 with one connection, on nothing but Node's own client: each line of the input is a body to post.
import http2 from "node:http2";
import readline from "node:readline";

const [url, path] = process.argv.slice(2);
// Whoever is asked to go opens no more requests; those under way end.
const asked = new WeakSet();
let session;

function connected() {
  if (!session || session.closed || session.destroyed || asked.has(session)) {
    session = http2.connect(url);
    session.on("goaway", function () { asked.add(this); });
    session.on("error", () => {});
  }
  return session;
}

function ask(body) {
  return new Promise((resolve) => {
    const used = connected();
    const stream = used.request({ ":method": "POST", ":path": path, "content-type": "application/json" });
    let status = 0;
    let text = "";
    stream.setEncoding("utf8");
    stream.on("response", (headers) => { status = headers[":status"]; });
    stream.on("data", (chunk) => { text += chunk; });
    stream.on("error", (error) => {
      // The goodbye was read before the request was written: Node keeps it back, and nothing has been asked yet.
      const isUnsent = asked.has(used) && stream.rstCode === http2.constants.NGHTTP2_REFUSED_STREAM;
      resolve(isUnsent ? ask(body) : { status: 0, text: `${error.code} ${error.message}` });
    });
    stream.on("end", () => resolve({ status, text }));
    stream.end(body);
  });
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await ask(line)));
}
process.exit(0);
