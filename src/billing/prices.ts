/** Prices are rows with a date they take effect on; the SQL function `price_in_force` picks one. */
import type { Sql } from "#platform/database.ts";

/** Mils a frame now: the customer's own price where they have one in force, else the list's; null asks for the list's. */
export async function priceFor(sql: Sql, customerId: string | null): Promise<number> {
  const [row] = await sql.query<{ price: number | null }>(`SELECT price_in_force($1, now()) AS price`, [customerId]);
  if (row?.price == null) throw new Error("no price is in force: the list price is missing");
  return row.price;
}
