/** No device and no Docker here: what can be held against the repository is that the image names what is in it. */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";

import { expect, test } from "vitest";

import { readConfig } from "#platform/config.ts";

const FOLDER = "infra/docker";
const dockerfile = readFileSync(`${FOLDER}/worker-gpu.Dockerfile`, "utf8").replaceAll(/ *\\\n */g, " ");
const instructions = dockerfile.split("\n").filter((line) => line !== "" && !line.startsWith("#"));
const { dependencies, engines } = JSON.parse(readFileSync("package.json", "utf8")) as {
  dependencies: Record<string, string>;
  engines: { node: string };
};

const argumentsOf = (instruction: string): string[][] =>
  instructions.filter((line) => line.startsWith(`${instruction} `)).map((line) => line.split(/\s+/).slice(1));

test("ONNX Runtime's libraries are of the version that the lock file has, and pinned by their hash", () => {
  const requirements = readFileSync(`${FOLDER}/onnxruntime-gpu.txt`, "utf8");
  const [, version, hash] = /^onnxruntime-gpu==(\S+) --hash=sha256:(\S+)$/m.exec(requirements) ?? [];
  expect(version).toBe(dependencies["onnxruntime-node"]);
  expect(hash).toMatch(/^[0-9a-f]{64}$/);
});

test("they go where the npm package has its own", () => {
  const [libraries] = argumentsOf("COPY").filter((words) => words.some((word) => word.endsWith("_cuda.so")));
  const target = libraries?.at(-1) ?? "";
  expect(existsSync(join(target, "onnxruntime_binding.node"))).toBe(true);
});

test("it copies what is there and what its ignore file lets through, and runs a Node that is new enough", () => {
  const letThrough = readFileSync(`${FOLDER}/worker-gpu.Dockerfile.dockerignore`, "utf8").split("\n");
  const sources = argumentsOf("COPY").flatMap((words) => (words[0]?.startsWith("--from") ? [] : words.slice(0, -1)));
  expect(sources).toContain("workers");
  for (const source of sources) {
    expect(existsSync(source), source).toBe(true);
    expect(letThrough).toContain(`!${source}`);
  }
  const node = argumentsOf("FROM").find(([image]) => image?.startsWith("node:"))?.[0];
  expect(`>=${node?.match(/\d+/)?.[0]}`).toBe(engines.node);
});

test("its providers are ones that a worker takes", () => {
  const providers = [...dockerfile.matchAll(/ORT_PROVIDERS=(\S+)/g)].map(([, names]) => names ?? "");
  expect(providers.map((names) => readConfig({ ORT_PROVIDERS: names }).ORT_PROVIDERS)).toEqual([
    ["cuda", "cpu"],
    ["tensorrt", "cuda", "cpu"],
  ]);
});
