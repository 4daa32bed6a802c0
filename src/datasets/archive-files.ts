/** What an archive holds, in dataset_files while it comes in: entries in any order, and never all of them in memory. */
import type { DatasetId } from "#contract/ids.ts";
import type { Sql } from "#platform/database.ts";

export interface ArchiveFile {
  /** Its place in the archive, from 1. */
  readonly entry: number;
  readonly name: string;
  readonly stem: string;
  readonly part: "frame" | "actions";
  readonly num_actions: number | null;
  readonly error_code: string | null;
  readonly error_message: string | null;
}

export type FoundFile = Omit<ArchiveFile, "stem">;

const COLUMNS = "entry, name, stem, part, num_actions, error_code, error_message";

/** Nothing where the dataset is not being received any more. */
export async function addFiles(sql: Sql, id: DatasetId, files: readonly ArchiveFile[]): Promise<void> {
  await sql.query(
    `WITH held AS MATERIALIZED (
       UPDATE datasets SET worked_at = now() WHERE id = $1 AND state = 'receiving' RETURNING id
     )
     INSERT INTO dataset_files (dataset_id, ${COLUMNS})
     SELECT held.id, f.* FROM held CROSS JOIN jsonb_to_recordset($2)
         AS f (entry int, name text, stem text, part text, num_actions int, error_code text, error_message text)`,
    [id, JSON.stringify(files)],
  );
}

/** By name; of several of one name the first. */
export async function findFiles(sql: Sql, id: DatasetId, names: readonly string[]): Promise<Map<string, FoundFile>> {
  const rows = await sql.query<FoundFile>(
    `SELECT DISTINCT ON (name) ${COLUMNS} FROM dataset_files WHERE dataset_id = $1 AND name = ANY ($2) ORDER BY name, entry`,
    [id, [...new Set(names)]],
  );
  return new Map(rows.map((file) => [file.name, file]));
}

/** Files of one page of `filesByStem`. */
const PAGE_FILES = 1_000;

/** The files of each stem, stem by stem in their order. */
export async function* filesByStem(sql: Sql, id: DatasetId): AsyncGenerator<readonly ArchiveFile[]> {
  let held: ArchiveFile[] = [];
  let after: readonly [stem: string, entry: number] = ["", 0];
  for (;;) {
    const page = await sql.query<ArchiveFile>(
      `SELECT ${COLUMNS} FROM dataset_files WHERE dataset_id = $1 AND (stem, entry) > ($2, $3)
        ORDER BY stem, entry LIMIT ${PAGE_FILES}`,
      [id, ...after],
    );
    for (const file of page) {
      if (held[0] && held[0].stem !== file.stem) {
        yield held;
        held = [];
      }
      // A stem of a thousand files is somebody's joke: two and what is wrong with it are enough.
      if (held.length < FILES_OF_STEM_MAX) held.push(file);
    }
    const last = page.at(-1);
    if (!last || page.length < PAGE_FILES) break;
    after = [last.stem, last.entry];
  }
  if (held.length > 0) yield held;
}

const FILES_OF_STEM_MAX = 4;

/** Once the rows are made, or the dataset is rejected. */
export async function dropFiles(sql: Sql, id: DatasetId): Promise<void> {
  await sql.query(`DELETE FROM dataset_files WHERE dataset_id = $1`, [id]);
}
