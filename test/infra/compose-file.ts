/** docker-compose.yml as it stands there, and with the secrets that infra/compose/make-env.sh makes. */
import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

import { parse } from "yaml";

import { readCompose } from "#test/support/compose.ts";

const FILE = "docker-compose.yml";
export const MAKE_ENV = "infra/compose/make-env.sh";

export interface Service {
  readonly image: string;
  readonly build?: { readonly context: string; readonly dockerfile: string; readonly target?: string };
  readonly command?: readonly string[];
  readonly restart: string;
  readonly networks: readonly string[] | Readonly<Record<string, unknown>>;
  readonly ports?: readonly string[];
  readonly volumes?: readonly (string | { readonly type: string; readonly target: string })[];
  readonly depends_on?: Readonly<Record<string, { readonly condition: string }>>;
  readonly profiles?: readonly string[];
}

export interface ComposeFile {
  readonly services: Readonly<Record<string, Service>>;
  readonly networks: Readonly<Record<string, { readonly internal?: boolean }>>;
  readonly volumes: Readonly<Record<string, object>>;
}

export const composeText = readFileSync(FILE, "utf8");
export const composeFile = parse(composeText, { merge: true }) as ComposeFile; // `docker compose config` checks its form

export function serviceOf(name: string): Service {
  const { [name]: service } = composeFile.services;
  if (!service) throw new Error(`${FILE}: expected a service ${name}`);
  return service;
}

export const networksOf = (name: string): string[] => {
  const { networks } = serviceOf(name);
  return Array.isArray(networks) ? [...networks] : Object.keys(networks);
};

export interface WithSecrets {
  readonly folder: string;
  readonly envFile: string;
  readonly variables: Readonly<Record<string, string>>;
  readonly environmentOf: (service: string) => Readonly<Record<string, string>>;
  remove(): void;
}

/** As after `infra/compose/make-env.sh`. */
export async function withSecrets(): Promise<WithSecrets> {
  const folder = mkdtempSync(join(tmpdir(), "dream-compose-"));
  const envFile = join(folder, ".env");
  await promisify(execFile)("sh", [MAKE_ENV, envFile]);
  const variables = readEnv(envFile);
  const services = readCompose(FILE, variables);
  return {
    folder,
    envFile,
    variables,
    environmentOf: (service) => services.get(service)?.environment ?? {},
    remove: () => rmSync(folder, { recursive: true }),
  };
}

export function readEnv(file: string): Record<string, string> {
  const lines = [...readFileSync(file, "utf8").matchAll(/^(\w+)=(.*)$/gm)];
  return Object.fromEntries(lines.map(([, name = "", value = ""]) => [name, value]));
}
