/* Continues a text as it comes, until Enter is pressed: stream MODEL [TEXT [MAX_TOKENS]] */
#include <mistral.h>

#include <pthread.h>
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
  return 0; /* Anything else would stop it, too. */
}

/* Stops the generation from another thread. */
static void *wait_for_enter(void *cancel) {
  if (getchar() == '\n') mistral_cancel_trigger(cancel);
  return NULL;
}

int main(int argc, char **argv) {
  const char *path = argc > 1 ? argv[1] : "", *text = argc > 2 ? argv[2] : "Once upon a time";
  const char *with_bos = "{\"bos\": true}";
  char options[64];
  size_t count = 0, capacity = strlen(text) + 2;
  uint32_t *tokens = malloc(capacity * sizeof *tokens);
  mistral_model *model = NULL;
  mistral_session *session = NULL;
  mistral_cancel *cancel = NULL;
  mistral_status status = MISTRAL_E_NO_MEMORY;
  pthread_t thread;

  snprintf(options, sizeof options, "{\"max_tokens\": %d}", argc > 3 ? atoi(argv[3]) : 64);
  if (tokens) status = mistral_model_open(path, strlen(path), NULL, 0, NULL, NULL, NULL, &model);
  if (status == MISTRAL_OK)
    status = mistral_encode(model, text, strlen(text), with_bos, strlen(with_bos), tokens, capacity, &count);
  if (status == MISTRAL_OK) status = mistral_session_new(model, NULL, 0, &session);
  if (status == MISTRAL_OK) status = mistral_cancel_new(&cancel);
  if (status == MISTRAL_OK) {
    if (pthread_create(&thread, NULL, wait_for_enter, cancel) == 0) pthread_detach(thread);
    status = mistral_generate(session, tokens, count, options, strlen(options), cancel, print, NULL);
    puts(status == MISTRAL_E_CANCELLED ? " [stopped]" : "");
    if (status == MISTRAL_E_CANCELLED) status = MISTRAL_OK;
  }
  if (status != MISTRAL_OK) fail("stream", status);
  /* The thread may still be waiting: a handle that was freed is refused, not followed. */
  mistral_cancel_free(cancel);
  mistral_session_free(session);
  mistral_model_free(model);
  free(tokens);
  return status != MISTRAL_OK;
}
