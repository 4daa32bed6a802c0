/** Stands in for an inference worker: says it is ready, then does what MODE says. */
const { MODE = "", PATH: _path, ...rest } = process.env;

if (MODE === "crash") {
  process.stderr.write("fatal: no such graph\n");
  process.exit(3);
}
if (MODE === "env")
  process.stdout.write(`${JSON.stringify({ level: 40, msg: "environment", names: Object.keys(rest) })}\n`);
if (MODE === "stubborn") process.on("SIGTERM", () => undefined);
process.on("disconnect", () => {
  if (MODE !== "hang") process.exit(0);
});
process.on("message", () => undefined); // keeps the channel, and with it this process, open
process.send?.({ type: "ready" });
if (MODE === "hang") setInterval(() => undefined, 1_000);
