/* Generates step by step: looks at the logits, then chooses a token: steps MODEL [TEXT [MAX_TOKENS]] */
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

/* The largest logit: what a host looks at before it lets the library choose, or chooses itself. */
static mistral_status largest(const mistral_session *session, float *logits, size_t capacity, float *out) {
  size_t count, i;
  mistral_status status = mistral_logits(session, logits, capacity, &count);
  for (i = 0, *out = 0; status == MISTRAL_OK && i < count; i++)
    if (i == 0 || logits[i] > *out) *out = logits[i];
  return status;
}

/* Evaluates `tokens`, then chooses and prints one token after the other. */
static mistral_status run(mistral_model *model, mistral_session *session, uint32_t *tokens, size_t count, int steps) {
  const char *options = "{\"temperature\": 0.7, \"seed\": 1}";
  size_t vocabulary = 0;
  float *logits = NULL;
  mistral_status status = mistral_prefill(session, tokens, count, NULL, NULL, NULL);
  if (status == MISTRAL_OK && mistral_logits(session, NULL, 0, &vocabulary) == MISTRAL_E_BUFFER_TOO_SMALL)
    logits = malloc(vocabulary * sizeof *logits);
  if (status == MISTRAL_OK && !logits) status = MISTRAL_E_NO_MEMORY;
  while (status == MISTRAL_OK && steps-- > 0) {
    mistral_buf *text = NULL;
    uint32_t token;
    float logit, logprob;
    if ((status = largest(session, logits, vocabulary, &logit)) != MISTRAL_OK) break;
    if ((status = mistral_sample(session, options, strlen(options), NULL, &token, &logprob)) != MISTRAL_OK) break;
    if ((status = mistral_decode(model, &token, 1, NULL, 0, &text)) != MISTRAL_OK) break;
    printf("%6.2f %6.2f %s\n", logit, logprob, mistral_buf_data(text));
    mistral_buf_free(text);
  }
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
  if (status == MISTRAL_OK) status = run(model, session, tokens, count, argc > 3 ? atoi(argv[3]) : 16);
  if (status != MISTRAL_OK) fail("steps", status);
  mistral_session_free(session);
  mistral_model_free(model);
  free(tokens);
  return status != MISTRAL_OK;
}
