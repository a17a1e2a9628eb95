/* SPDX-License-Identifier: Apache-2.0
 *
 * What commands print: tables with aligned columns, JSON, numbers with units, and errors.
 */
#ifndef AMLA_CLI_REPORT_H
#define AMLA_CLI_REPORT_H

#include <jansson.h>
#include <stdbool.h>

enum { CLI_MAX_COLUMNS = 20, CLI_CELL = 200 /* characters */ };

typedef struct cli_table {
  int n_columns, n_rows, capacity;
  char (*cells)[CLI_MAX_COLUMNS][CLI_CELL]; /* row 0 is the heading */
  bool left[CLI_MAX_COLUMNS]; /* aligned left; a heading that begins with '<' says so */
} cli_table;

/* headings: n_columns strings. Out of memory ends the program. */
cli_table cli_table_create(int n_columns, const char *const *headings);
void cli_table_row(cli_table *table); /* begins a row */
__attribute__((format(printf, 3, 4))) void cli_table_cell(cli_table *table, int column,
                                                          const char *format, ...);
void cli_table_print(const cli_table *table);
void cli_table_free(cli_table *table);

/* Prints a value, and frees it. Ends the program when it cannot. */
void cli_print_json(json_t *value);

/* As json_pack, but never NULL: what JSON cannot hold ends the program, with words. */
json_t *cli_json_pack(const char *format, ...);

/* A string for JSON, which a file's name may not be: bytes that are not UTF-8 become U+FFFD. */
json_t *cli_json_text(const char *text);

/* A number for JSON: null when it is not finite, which JSON cannot hold. */
json_t *cli_json_real(double value);

/* "1.23 ms", "456 us". */
const char *cli_format_seconds(double seconds, char text[32]);

/* "amla run: ..." on standard error. */
__attribute__((format(printf, 2, 3))) void cli_error(const char *command, const char *format, ...);

/* Zeroed memory for n elements; and an array made larger, for which *capacity counts elements. Both
 * end the program when out of memory. */
void *cli_allocate(size_t n, size_t element_bytes);
void *cli_grow(void *array, int *capacity, size_t element_bytes);

#endif
