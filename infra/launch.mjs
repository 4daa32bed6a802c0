// Runs a TypeScript entry point (or, with `--bin NAME`, a tool of node_modules) on Node 24, whatever Node the
// machine has: the first run installs the dependencies, and Node 24 itself comes with them as an npm package.
// Plain JavaScript on purpose: it must run on the Node that is already there, before anything is installed.
import { spawn, spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { constants } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const root = resolve(dirname(fileURLToPath(import.meta.url)), "..");

/** npm writes its own copy of the lock file into node_modules; every package of it must be the one we lock. */
function dependenciesAreCurrent() {
  const installed = join(root, "node_modules", ".package-lock.json");
  if (!existsSync(installed)) return false;
  const want = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8")).packages;
  const have = JSON.parse(readFileSync(installed, "utf8")).packages;
  return Object.entries(want).every(
    ([path, entry]) => path === "" || entry.optional || have[path]?.version === entry.version,
  );
}

function fail(message, status = 1) {
  process.stderr.write(message);
  return process.exit(status);
}

function installDependencies() {
  process.stderr.write("Installing dependencies (first run or a changed lock file, about a minute) …\n");
  const { status } = spawnSync("npm", ["ci", "--no-audit", "--no-fund", "--loglevel=error"], {
    cwd: root,
    stdio: ["ignore", 2, 2],
  });
  if (status !== 0) fail("npm ci failed; see its messages above.\n", status ?? 1);
}

function nodeBinary() {
  if (Number(process.versions.node.split(".")[0]) >= 24) return process.execPath;
  const bundled = join(root, "node_modules", `node-${process.platform}-${process.arch}`, "bin", "node");
  if (existsSync(bundled)) return bundled;
  return fail(
    `Node 24 or newer is needed and this is Node ${process.versions.node}; ` +
      `no packaged Node exists for ${process.platform}-${process.arch}. Install Node 24 from https://nodejs.org.\n`,
  );
}

/** The JavaScript file behind a package's `bin` entry. */
function binScript(name) {
  const manifestPath = createRequire(join(root, "package.json")).resolve(`${name}/package.json`);
  const { bin } = JSON.parse(readFileSync(manifestPath, "utf8"));
  return join(dirname(manifestPath), typeof bin === "string" ? bin : bin[name]);
}

if (!dependenciesAreCurrent()) installDependencies();
const [first, ...rest] = process.argv.slice(2);
const args = first === "--bin" ? [binScript(rest[0]), ...rest.slice(1)] : [join(root, first), ...rest];

const child = spawn(nodeBinary(), args, { stdio: "inherit", cwd: root });
// A terminal sends Ctrl-C to the whole process group; a supervisor sends it to us alone. Pass on, and wait.
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => child.kill(signal));
child.on("exit", (code, signal) => process.exit(code ?? 128 + constants.signals[signal]));
