/** Secrets that all processes of a deployment share, made by whoever asks first and kept in the database. */
import type { RandomBytes } from "#contract/ids.ts";

import type { Sql } from "./database.ts";

const SECRET_BYTES = 32;

/** The secret of that name; 32 bytes. Everyone gets the same one, also when several ask at once for the first time. */
export async function sharedSecret(sql: Sql, name: string, random: RandomBytes): Promise<Buffer> {
  // Waits for whoever is inserting it now, and changes nothing: no process may update a secret.
  await sql.query(`INSERT INTO shared_secrets (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING`, [
    name,
    Buffer.from(random(SECRET_BYTES)),
  ]);
  const [row] = await sql.query<{ value: Buffer }>(`SELECT value FROM shared_secrets WHERE name = $1`, [name]);
  if (!row) throw new Error(`no shared secret ${name} after inserting it`);
  return row.value;
}
