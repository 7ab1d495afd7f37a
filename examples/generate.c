/*
 * Continues a text, token by token: generate MODEL [TEXT [MAX_TOKENS]]
 *
 *   cc examples/generate.c -Iinclude -Ltarget/release -lmistral -o generate
 */
#include "mistral.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int fail(const char *what, mistral_status status) {
  char message[512];
  mistral_last_error(message, sizeof message);
  fprintf(stderr, "%s: %s: %s\n", what, mistral_status_name(status), message);
  return 1;
}

static int32_t print(void *user_data, const mistral_event *event) {
  (void)user_data;
  fwrite(event->text, 1, event->text_len, stdout);
  fflush(stdout);
  return 0;
}

int main(int argc, char **argv) {
  const char *path = argc > 1 ? argv[1] : "";
  const char *text = argc > 2 ? argv[2] : "Once upon a time";
  const char *with_bos = "{\"bos\": true}";
  char options[64];
  size_t count = 0, capacity = strlen(text) + 2;
  uint32_t *tokens = malloc(capacity * sizeof *tokens);
  mistral_model *model = NULL;
  mistral_session *session = NULL;
  mistral_buf *stats = NULL;
  mistral_status status;
  int result = 1;

  snprintf(options, sizeof options, "{\"max_tokens\": %d}", argc > 3 ? atoi(argv[3]) : 64);
  if (!tokens) {
    fprintf(stderr, "no memory\n");
  } else if ((status = mistral_model_open(path, strlen(path), NULL, 0, NULL, NULL, NULL, &model)) != MISTRAL_OK) {
    fail("open", status);
  } else if ((status = mistral_encode(model, text, strlen(text), with_bos, strlen(with_bos), tokens, capacity,
                                      &count)) != MISTRAL_OK) {
    fail("encode", status);
  } else if ((status = mistral_session_new(model, NULL, 0, &session)) != MISTRAL_OK) {
    fail("session", status);
  } else if ((status = mistral_generate(session, tokens, count, options, strlen(options), NULL, print, NULL)) !=
             MISTRAL_OK) {
    fail("generate", status);
  } else if ((status = mistral_session_stats(session, &stats)) != MISTRAL_OK) {
    fail("stats", status);
  } else {
    printf("\n%s\n", mistral_buf_data(stats));
    result = 0;
  }
  mistral_buf_free(stats);
  mistral_session_free(session);
  mistral_model_free(model);
  free(tokens);
  return result;
}
