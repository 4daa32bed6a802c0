"""Prints the Parquet file named on the command line, as PyArrow reads it: its schema, row groups and rows, as JSON."""

import json
import sys

import pyarrow.parquet as pq

file = pq.ParquetFile(sys.argv[1])
print(
    json.dumps(
        {
            "schema": {field.name: str(field.type) for field in file.schema_arrow},
            "row_groups": [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)],
            # As text: JavaScript's numbers end at 2^53.
            "rows": [
                {name: None if value is None else str(value) for name, value in row.items()}
                for row in file.read().to_pylist()
            ],
        }
    )
)
