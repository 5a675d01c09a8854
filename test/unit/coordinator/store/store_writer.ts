/** Child process of the kill -9 test: writes keys for ever and prints the id of each one that is safe. */
import { writeSync } from "node:fs";
import { openSqliteStore } from "../../../../coordinator/store/sqlite_store.ts";

const store = openSqliteStore(process.argv[2] ?? "");
for (let number = 0; ; number++) {
  const id = `${process.pid}-${number}`;
  store.putKey({
    id,
    secretHash: new Uint8Array(32),
    createdUnixMs: number,
    expiresUnixMs: 0,
    reusable: false,
    usedUnixMs: undefined,
    revoked: false,
  });
  writeSync(1, `${id}\n`);
}
