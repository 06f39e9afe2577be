// A worker that computes nothing: answers either hop at once, so that what is measured is the way there and back.
import { createServer } from "node:http";

const EVENT = `data: {"id":"cmpl-1","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":" word","logprobs":null,"finish_reason":null,"stop_reason":null}]}\n\n`;
const ANSWER = JSON.stringify({
  id: "cmpl-1",
  object: "text_completion",
  choices: [{ index: 0, text: " word", finish_reason: "length" }],
});
const CONTEXT = (id) =>
  `{"id":"cmpl-1","object":"text_completion","choices":[{"index":0,"text":" word","finish_reason":"not_finished","disaggregated_params":{"request_type":"context_only","first_gen_tokens":[1],"ctx_request_id":${id},"disagg_request_id":${id},"encoded_opaque_state":"${"c".repeat(600)}"}}],"usage":{},"prompt_token_ids":[${Array(256).fill(321)}]}`;

const server = createServer((request, response) => {
  const pieces = [];
  request.on("data", (piece) => pieces.push(piece));
  request.on("end", () => {
    const json = (text) => response.writeHead(200, { "content-type": "application/json" }).end(text);
    if (request.url === "/server_info") return json('{"kvt_protocol":1,"offer_ms":60000}');
    if (request.url === "/v1/models") return json('{"object":"list","data":[{"id":"m"}]}');
    if (request.url === "/steady_clock_offset") return json('{"receive_ts":1,"transmit_ts":1}');
    if (!request.url.startsWith("/v1/")) return json("{}");
    const text = Buffer.concat(pieces).toString();
    if (text.includes('"context_only"')) return json(CONTEXT(/"disagg_request_id":(\d+)/.exec(text)[1]));
    const events = Number(/"events":(\d+)/.exec(text)?.[1] ?? 0);
    if (events === 0) return json(ANSWER);
    response.writeHead(200, { "content-type": "text/event-stream" });
    return send(response, events);
  });
});

function send(response, left) {
  while (left > 0) {
    left -= 1;
    if (!response.write(EVENT)) {
      response.once("drain", () => send(response, left));
      return;
    }
  }
  response.end("data: [DONE]\n\n");
}

server.listen(0, "127.0.0.1", () => process.send({ port: server.address().port, eventBytes: EVENT.length }));
