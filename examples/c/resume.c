/* Reads a text, saves the session in session.bin, and goes on from that file: resume MODEL [TEXT [MAX_TOKENS]] */
#include <mistral.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const FILE_NAME = "session.bin";

static int fail(const char *what, mistral_status status) {
  char message[512];
  mistral_last_error(message, sizeof message);
  fprintf(stderr, "%s: %s: %s\n", what, mistral_status_name(status), message);
  return 1;
}

static mistral_status save(const mistral_session *session) {
  mistral_buf *saved = NULL;
  mistral_status status = mistral_session_save(session, NULL, 0, NULL, NULL, NULL, &saved);
  FILE *file = status == MISTRAL_OK ? fopen(FILE_NAME, "wb") : NULL;
  if (file && fwrite(mistral_buf_data(saved), 1, mistral_buf_len(saved), file) != mistral_buf_len(saved)) status = MISTRAL_E_IO;
  if (status == MISTRAL_OK && (!file || fclose(file) != 0)) status = MISTRAL_E_IO;
  mistral_buf_free(saved);
  return status;
}

/* What was saved is checked before it is believed: a file that was changed is refused. */
static mistral_status load(const mistral_model *model, mistral_session **session) {
  mistral_status status = MISTRAL_E_IO;
  FILE *file = fopen(FILE_NAME, "rb");
  if (file && fseek(file, 0, SEEK_END) == 0) {
    long size = ftell(file);
    char *saved = size > 0 ? malloc((size_t)size) : NULL;
    rewind(file);
    if (saved && fread(saved, 1, (size_t)size, file) == (size_t)size)
      status = mistral_session_load(model, saved, (size_t)size, NULL, 0, NULL, NULL, NULL, session);
    free(saved);
  }
  if (file) fclose(file);
  return status;
}

static int32_t print(void *user_data, const mistral_event *event) {
  (void)user_data;
  fwrite(event->text, 1, event->text_len, stdout);
  return 0;
}

int main(int argc, char **argv) {
  const char *path = argc > 1 ? argv[1] : "", *text = argc > 2 ? argv[2] : "Once upon a time";
  const char *with_bos = "{\"bos\": true}";
  char options[64];
  size_t count = 0, capacity = strlen(text) + 2;
  uint32_t *tokens = malloc(capacity * sizeof *tokens);
  mistral_model *model = NULL;
  mistral_session *first = NULL, *second = NULL;
  mistral_status status = MISTRAL_E_NO_MEMORY;

  snprintf(options, sizeof options, "{\"max_tokens\": %d}", argc > 3 ? atoi(argv[3]) : 64);
  if (tokens) status = mistral_model_open(path, strlen(path), NULL, 0, NULL, NULL, NULL, &model);
  if (status == MISTRAL_OK)
    status = mistral_encode(model, text, strlen(text), with_bos, strlen(with_bos), tokens, capacity, &count);
  if (status == MISTRAL_OK) status = mistral_session_new(model, NULL, 0, &first);
  if (status == MISTRAL_OK) status = mistral_prefill(first, tokens, count, NULL, NULL, NULL);
  if (status == MISTRAL_OK) status = save(first);
  mistral_session_free(first);
  /* Here the program could end, and another go on. */
  if (status == MISTRAL_OK) status = load(model, &second);
  if (status == MISTRAL_OK) status = mistral_generate(second, NULL, 0, options, strlen(options), NULL, print, NULL);
  if (status == MISTRAL_OK) putchar('\n');
  if (status != MISTRAL_OK) fail("resume", status);
  mistral_session_free(second);
  mistral_model_free(model);
  free(tokens);
  return status != MISTRAL_OK;
}
