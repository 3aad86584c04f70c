// HTTP/2 with one connection, on nothing but Node's own client: each line of the input is a body to post.
import http2 from "node:http2";
import readline from "node:readline";

const [url, path] = process.argv.slice(2);
let session;

function connected() {
  if (!session || session.closed || session.destroyed) {
    const opened = http2.connect(url);
    // Whoever is asked to go opens no more requests; those under way end.
    opened.on("goaway", () => { if (session === opened) session = undefined; });
    opened.on("error", () => { if (session === opened) session = undefined; });
    session = opened;
  }
  return session;
}

function ask(body) {
  return new Promise((resolve) => {
    const stream = connected().request({ ":method": "POST", ":path": path, "content-type": "application/json" });
    let status = 0;
    let text = "";
    stream.setEncoding("utf8");
    stream.on("response", (headers) => { status = headers[":status"]; });
    stream.on("data", (chunk) => { text += chunk; });
    stream.on("error", (error) => resolve({ status: 0, text: `${error.code} ${error.message}` }));
    stream.on("end", () => resolve({ status, text }));
    stream.end(body);
  });
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await ask(line)));
}
process.exit(0);
