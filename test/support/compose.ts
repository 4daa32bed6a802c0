/** What docker-compose.yml would run, read without Docker: each service's command and environment. */
import { readFileSync } from "node:fs";

import { parse } from "yaml";

export interface ComposeService {
  readonly command: readonly string[];
  readonly environment: Readonly<Record<string, string>>;
}

interface RawService {
  readonly command?: string | readonly string[];
  readonly environment?: Readonly<Record<string, string | number | boolean | null>> | readonly string[];
}

/** `variables`: what .env or the shell would hold. Throws where the file needs one that is missing. */
export function readCompose(
  file: string,
  variables: Readonly<Record<string, string>>,
): ReadonlyMap<string, ComposeService> {
  const { services } = parse(readFileSync(file, "utf8"), { merge: true }) as {
    services: Readonly<Record<string, RawService>>; // `docker compose config` checks the file (test/infra)
  };
  const fill = (text: string): string => interpolate(text, variables);
  return new Map(
    Object.entries(services).map(([name, { command = [], environment = {} }]) => {
      const words = typeof command === "string" ? command.split(/\s+/).filter(Boolean) : command;
      const pairs = Array.isArray(environment)
        ? environment.map((line: string) => [line.split("=")[0] ?? "", line.slice(line.indexOf("=") + 1)] as const)
        : Object.entries(environment).map(([key, value]) => [key, String(value ?? "")] as const);
      return [
        name,
        { command: words.map(fill), environment: Object.fromEntries(pairs.map(([key, value]) => [key, fill(value)])) },
      ];
    }),
  );
}

/** Compose's own forms: $$, ${NAME}, ${NAME:-default}, ${NAME-default}, ${NAME:?why} and ${NAME?why}. */
function interpolate(text: string, variables: Readonly<Record<string, string>>): string {
  return text.replaceAll(
    /\$\$|\$\{(\w+)(?:(:?[-?])([^}]*))?\}|\$(\w+)/g,
    (whole, braced: string | undefined, form = "", rest = "", bare?: string) => {
      if (whole === "$$") return "$";
      const name = braced ?? bare ?? "";
      const value = variables[name];
      if (value !== undefined && (value !== "" || !String(form).startsWith(":"))) return value;
      if (String(form).endsWith("?")) throw new Error(`docker-compose.yml needs ${name}: ${rest}`);
      return String(rest);
    },
  );
}
