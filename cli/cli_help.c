/* SPDX-License-Identifier: Apache-2.0
 *
 * amla help TOPIC, and the words that a shell completes. Manual pages are made of what help prints
 * (tools/make_man.sh); the shell asks for words (cli/amla.bash). Options, kinds and keys come from
 * the tables that parse them.
 */
#include "cli_help.h"

#include <string.h>

#include "harness/names.h"
#include "harness/problem_string.h"

/* ---- Topics ---- */

enum { MAX_STRING = 1024 };

/* "key=value" of the defaults, cut out of the canonical string. */
static void default_of(const char *name, char *text, size_t text_bytes) {
  char all[MAX_STRING], error[256];
  harness_case c;
  const size_t length = strlen(name);
  snprintf(text, text_bytes, "%s=", name);
  if (harness_parse_problem("", &c, error, sizeof error) != 0)
    return;
  harness_format_problem(&c, all, sizeof all);
  for (const char *at = all; *at != '\0'; at += strcspn(at, ","), at += *at == ',')
    if (strncmp(at, name, length) == 0 && at[length] == '=')
      snprintf(text, text_bytes, "%.*s", (int)strcspn(at, ","), at);
}

static void print_problem(void) {
  harness_problem_key key;
  fputs("A problem is a string of key=value pairs, separated by commas. All are optional; the\n"
        "defaults are those of one step of DeepSeek-V3:\n\n",
        stdout);
  for (int i = 0; harness_describe_key(i, &key); i++) {
    char shown[64];
    default_of(key.name, shown, sizeof shown);
    printf("  %-14s  %s\n", shown, key.meaning);
    if (*key.values != '\0')
      printf("  %-14s  %s\n", "", key.values);
  }
  fputs("\n"
        "A list of lengths sets b as well. docs/sparse.md explains lists, scopes and windows.\n\n"
        "  amla bench h=16,sk=4096,kv=q8_0\n"
        "  amla check b=3,h=16,len=3/0/1000,causal=0\n"
        "  amla run h=64,sk=32768,topk=2048\n",
        stdout);
}

static void print_environment(void) {
  printf("Of the library; nonsense is refused by every command that needs it:\n"
         "  AMLA_NUM_THREADS       threads; default OMP_NUM_THREADS, or else one a core, within\n"
         "                         affinity and CPU quota\n"
         "  AMLA_ISA               caps the instruction set: %s\n"
         "  AMLA_L2_BYTES          a thread's share of the L2 cache\n"
         "  AMLA_CUDA_KERNEL       caps the kernel of backend cuda: mma32, mma64, wgmma2, wgmma3,\n"
         "                         wgmma3c, wgmma16\n"
         "  AMLA_BACKEND_DIR       the folder of libamla_cuda.so and libamla_npu.so\n"
         "Of its faces:\n"
         "  AMLA_LOG=1             a line on stderr for each plan: shape, kernel, threads; one at "
         "exit:\n"
         "                         runs, tokens, GFLOP/s, refusals. amla, Python, vLLM, llama.cpp\n"
         "  AMLA_LIBRARY           Python: the libamla.so to load\n"
         "  AMLA_GGML_ANY_VERSION  llama.cpp: 1 tries versions of ggml that were never tried\n"
         "  GGML_BACKEND_PATH      llama.cpp: the plug-in, libggml-amla.so\n"
         "  LLAMA_ARG_FLASH_ATTN   llama.cpp: on, or attention never reaches a plug-in\n",
         harness_list_names(harness_isas, ", ").text);
}

static void print_status(void) {
  fputs("  0  good\n"
        "  1  a file, an allocation, or the library refused; stderr has its words\n"
        "  2  usage: an unknown command, option or argument\n"
        "  3  the result is wrong\n",
        stdout);
}

static const struct topic {
  const char *name;
  void (*print)(void);
  const char *summary;
} topics[] = {
    {"problem", print_problem, "problem strings: keys, values, defaults"},
    {"environment", print_environment, "environment variables"},
    {"status", print_status, "exit status"},
};
enum { N_TOPICS = sizeof topics / sizeof *topics };

void cli_list_topics(FILE *to) {
  for (size_t i = 0; i < N_TOPICS; i++)
    fprintf(to, "  amla help %-12s %s\n", topics[i].name, topics[i].summary);
}

bool cli_print_topic(const char *name) {
  for (size_t i = 0; i < N_TOPICS; i++)
    if (strcmp(topics[i].name, name) == 0) {
      topics[i].print();
      return true;
    }
  return false;
}

/* ---- Words ---- */

static void print_each(const char *before, const char *values) {
  for (const char *at = values; *at != '\0'; at += strspn(at, ", ")) {
    const size_t length = strcspn(at, ",");
    printf("%s%.*s\n", before, (int)length, at);
    at += length;
  }
}

void cli_print_topic_words(void) {
  for (size_t i = 0; i < N_TOPICS; i++)
    puts(topics[i].name);
}

void cli_print_key_words(void) {
  harness_problem_key key;
  for (int i = 0; harness_describe_key(i, &key); i++) {
    char before[32];
    snprintf(before, sizeof before, "%s=", key.name);
    puts(before);
    print_each(before, key.values);
  }
}

/* An option, and each value that the library names. */
static void print_option(const struct argp_option *option, harness_names names) {
  char before[48];
  snprintf(before, sizeof before, "--%s%s", option->name, option->arg ? "=" : "");
  puts(before);
  if (names != NULL)
    print_each(before, harness_list_names(names, ", ").text);
}

void cli_print_option_words(const struct argp *argp, harness_names (*names_of)(int key)) {
  for (const struct argp_option *o = argp->options; o != NULL && o->name != NULL; o++)
    print_option(o, names_of(o->key));
  for (const struct argp_child *c = argp->children; c != NULL && c->argp != NULL; c++)
    cli_print_option_words(c->argp, names_of);
}
