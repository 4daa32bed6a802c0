/** Stands in for an inference worker process: what it tells its fleet, a test tells it over the socket CONTROL. */
import { connect } from "node:net";
import { createInterface } from "node:readline";

import { DONE, type Order, TOLD_TO_DRAIN } from "./worker-script.ts";

const { CONTROL = "" } = process.env;
const socket = connect(CONTROL);
let jobs = 0;
let draining = false;

function endWhenDone(): void {
  if (draining && jobs === 0) process.exit(0);
}

process.on("message", (message: { readonly type: string }) => {
  if (message.type !== "drain") return;
  draining = true;
  socket.write(`${TOLD_TO_DRAIN}\n`, endWhenDone);
});
process.on("disconnect", () => process.exit(0));
socket.on("close", () => process.exit(0));
socket.write(`${process.pid}\n`);
createInterface({ input: socket }).on("line", (line) => {
  const order = JSON.parse(line) as Order; // of worker-script.ts
  if (order.kind === "die") process.exit(order.code);
  if (order.kind === "ready") process.send?.({ type: "ready" });
  if (order.kind === "jobs" || order.kind === "jobs untold") jobs = order.count;
  if (order.kind === "jobs") process.send?.({ type: "jobs", count: jobs });
  socket.write(`${DONE}\n`, endWhenDone);
});
