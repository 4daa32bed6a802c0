/** The login roles of separate processes, made by whoever sets a deployment up (`dream-engine database roles`). */
import { escapeIdentifier, escapeLiteral } from "pg";

import type { RandomBytes } from "#contract/ids.ts";
import type { Sql } from "#platform/database.ts";
import { isPlainPassword, scramVerifier } from "#platform/scram.ts";

import { UserError } from "./user-error.ts";

/** Of a password that is made by a machine; a person's would be shorter. */
const PASSWORD_CHARS_MIN = 16;
/** "role" in ASCII, as for the roles that `serve` makes (database-roles.ts). */
const ROLE_LOCK = 0x726f6c65;

/** One for each process, from `<PROCESS>_DB_PASSWORD`; throws one error that names all that are missing. */
export function readPasswords<Process extends string>(
  env: NodeJS.ProcessEnv,
  processes: readonly Process[],
): ReadonlyMap<Process, string> {
  const passwords = processes.map((process) => {
    const name = `${process.toUpperCase()}_DB_PASSWORD`;
    return { process, name, password: env[name] ?? "" };
  });
  const wrong = passwords.filter(({ password }) => password.length < PASSWORD_CHARS_MIN || !isPlainPassword(password));
  if (wrong.length > 0) {
    const names = wrong.map(({ name }) => name).join(", ");
    throw new UserError(
      `${names}: expected the password of that process's role, at least ${PASSWORD_CHARS_MIN} characters of printable ASCII.`,
    );
  }
  const distinct = new Set(passwords.map(({ password }) => password));
  if (distinct.size < passwords.length) {
    throw new UserError("Two processes have the same password: whoever has one could be the other.");
  }
  return new Map(passwords.map(({ process, password }) => [process, password]));
}

/** Makes it, or gives the one that is there this password. */
export async function makeLoginRole(tx: Sql, role: string, password: string, random: RandomBytes): Promise<void> {
  const name = escapeIdentifier(role);
  await tx.query("SELECT pg_advisory_xact_lock($1)", [ROLE_LOCK]);
  const [found] = await tx.query("SELECT FROM pg_roles WHERE rolname = $1", [role]);
  if (!found) await tx.query(`CREATE ROLE ${name} NOSUPERUSER NOCREATEDB NOCREATEROLE`);
  await tx.query(`ALTER ROLE ${name} LOGIN PASSWORD ${escapeLiteral(scramVerifier(password, random))}`);
}
