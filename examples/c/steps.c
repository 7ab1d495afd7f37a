/* Generates step by step, choosing each token itself: steps MODEL [TEXT [MAX_TOKENS]] */
#include <mistral.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int fail(const char *what, mistral_status status) {
  char message[512];
  mistral_last_error(message, sizeof message);
  fprintf(stderr, "%s: %s: %s\n", what, mistral_status_name(status), message);
  return 1;
}

static uint32_t most_probable(const float *logits, size_t count) {
  size_t best = 0, i;
  for (i = 1; i < count; i++)
    if (logits[i] > logits[best]) best = i;
  return (uint32_t)best;
}

/* Evaluates `tokens`, then chooses, prints and evaluates one token after the other. */
static mistral_status run(mistral_model *model, mistral_session *session, uint32_t *tokens, size_t count, int steps) {
  size_t vocabulary = 0;
  float *logits;
  mistral_status status = mistral_prefill(session, tokens, count, NULL, NULL, NULL);
  if (status != MISTRAL_OK) return status;
  mistral_logits(session, NULL, 0, &vocabulary);
  logits = malloc(vocabulary * sizeof *logits);
  if (!logits) return MISTRAL_E_NO_MEMORY;
  while (status == MISTRAL_OK && steps-- > 0) {
    mistral_buf *text = NULL;
    uint32_t token;
    if ((status = mistral_logits(session, logits, vocabulary, &vocabulary)) != MISTRAL_OK) break;
    token = most_probable(logits, vocabulary);
    if ((status = mistral_decode(model, &token, 1, NULL, 0, &text)) != MISTRAL_OK) break;
    fwrite(mistral_buf_data(text), 1, mistral_buf_len(text), stdout);
    mistral_buf_free(text);
    status = mistral_prefill(session, &token, 1, NULL, NULL, NULL);
  }
  putchar('\n');
  free(logits);
  return status;
}

int main(int argc, char **argv) {
  const char *path = argc > 1 ? argv[1] : "", *text = argc > 2 ? argv[2] : "Once upon a time";
  const char *with_bos = "{\"bos\": true}";
  size_t count = 0, capacity = strlen(text) + 2;
  uint32_t *tokens = malloc(capacity * sizeof *tokens);
  mistral_model *model = NULL;
  mistral_session *session = NULL;
  mistral_status status = MISTRAL_E_NO_MEMORY;

  if (tokens) status = mistral_model_open(path, strlen(path), NULL, 0, NULL, NULL, NULL, &model);
  if (status == MISTRAL_OK)
    status = mistral_encode(model, text, strlen(text), with_bos, strlen(with_bos), tokens, capacity, &count);
  if (status == MISTRAL_OK) status = mistral_session_new(model, NULL, 0, &session);
  if (status == MISTRAL_OK) status = run(model, session, tokens, count, argc > 3 ? atoi(argv[3]) : 64);
  if (status != MISTRAL_OK) fail("steps", status);
  mistral_session_free(session);
  mistral_model_free(model);
  free(tokens);
  return status != MISTRAL_OK;
}
