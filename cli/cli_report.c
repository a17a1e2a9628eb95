/* SPDX-License-Identifier: Apache-2.0
 *
 * Tables, JSON, numbers, errors.
 */
#include "cli_report.h"

#include <assert.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli_commands.h"

void cli_error(const char *command, const char *format, ...) {
  va_list arguments;
  fflush(stdout);
  fprintf(stderr, "%s: ", command);
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fputc('\n', stderr);
}

static void *or_exit(void *memory) {
  if (memory != NULL)
    return memory;
  cli_error("amla", "out of memory");
  exit(CLI_ERROR);
}

void *cli_allocate(size_t n, size_t element_bytes) {
  return or_exit(calloc(n ? n : 1, element_bytes));
}

void *cli_grow(void *array, int *capacity, size_t element_bytes) {
  *capacity = 2 * *capacity + 8;
  return or_exit(realloc(array, (size_t)*capacity * element_bytes));
}

/* ---- Tables ---- */

void cli_table_row(cli_table *table) {
  if (table->n_rows == table->capacity)
    table->cells = cli_grow(table->cells, &table->capacity, sizeof *table->cells);
  memset(table->cells[table->n_rows++], 0, sizeof *table->cells);
}

cli_table cli_table_create(int n_columns, const char *const *headings) {
  assert(n_columns <= CLI_MAX_COLUMNS);
  cli_table table = {.n_columns = n_columns};
  cli_table_row(&table);
  for (int i = 0; i < n_columns; i++) {
    table.left[i] = headings[i][0] == '<';
    cli_table_cell(&table, i, "%s", headings[i] + table.left[i]);
  }
  return table;
}

void cli_table_cell(cli_table *table, int column, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(table->cells[table->n_rows - 1][column], CLI_CELL, format, arguments);
  va_end(arguments);
}

static int width_of(const cli_table *table, int column) {
  size_t width = 0;
  for (int row = 0; row < table->n_rows; row++) {
    const size_t length = strlen(table->cells[row][column]);
    if (length > width)
      width = length;
  }
  return (int)width;
}

void cli_table_print(const cli_table *table) {
  int widths[CLI_MAX_COLUMNS];
  for (int column = 0; column < table->n_columns; column++)
    widths[column] = width_of(table, column);
  for (int row = 0; row < table->n_rows; row++)
    for (int column = 0; column < table->n_columns; column++) {
      const bool last = column + 1 == table->n_columns;
      int width = table->left[column] ? -widths[column] : widths[column];
      if (last && table->left[column])
        width = 0; /* no spaces at the end of a line */
      printf("%*s%s", width, table->cells[row][column], last ? "\n" : "  ");
    }
}

void cli_table_free(cli_table *table) {
  free(table->cells);
  *table = (cli_table){0};
}

/* ---- JSON and numbers ---- */

void cli_print_json(json_t *value) {
  if (json_dumpf(value, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) != 0) {
    if (!ferror(stdout))
      cli_error("amla", "cannot print JSON"); /* stdout is told of at the end */
    exit(CLI_ERROR);
  }
  putchar('\n');
  json_decref(value);
}

json_t *cli_json_pack(const char *format, ...) {
  json_error_t why;
  va_list arguments;
  va_start(arguments, format);
  json_t *value = json_vpack_ex(&why, 0, format, arguments);
  va_end(arguments);
  if (value != NULL)
    return value;
  cli_error("amla", "cannot make JSON: %s", why.text);
  exit(CLI_ERROR);
}

static bool is_utf8(const char *bytes, size_t n) {
  json_t *string = json_stringn(bytes, n);
  json_decref(string);
  return string != NULL;
}

json_t *cli_json_text(const char *text) {
  static const char replacement[] = "\xEF\xBF\xBD"; /* U+FFFD */
  enum { BYTES = sizeof replacement - 1, LONGEST = 4 /* of a UTF-8 character */ };
  char *valid = cli_allocate(strlen(text) + 1, BYTES);
  size_t used = 0;
  while (*text != '\0') {
    size_t n = 1;
    while (n < LONGEST && text[n] != '\0' && !is_utf8(text, n))
      n++;
    if (is_utf8(text, n)) {
      memcpy(valid + used, text, n);
      used += n;
      text += n;
    } else {
      memcpy(valid + used, replacement, BYTES);
      used += BYTES;
      text++;
    }
  }
  json_t *string = json_stringn(valid, used);
  free(valid);
  return string;
}

json_t *cli_json_real(double value) { return isfinite(value) ? json_real(value) : json_null(); }

const char *cli_format_seconds(double seconds, char text[32]) {
  if (seconds >= 1)
    snprintf(text, 32, "%.3g s", seconds);
  else if (seconds >= 1e-3)
    snprintf(text, 32, "%.3g ms", seconds * 1e3);
  else
    snprintf(text, 32, "%.3g us", seconds * 1e6);
  return text;
}
