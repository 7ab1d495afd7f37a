/*
 * Answers a question as a stream of chat-completions chunks: chat MODEL [QUESTION [MAX_TOKENS]]
 *
 *   cc examples/chat.c -Iinclude -Ltarget/release -lmistral -o chat
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

/* Prints each chunk, one JSON object a line; a host would hand it to its JSON parser. */
static int32_t print(void *user_data, const char *chunk, size_t len) {
  (void)user_data;
  fwrite(chunk, 1, len, stdout);
  putchar('\n');
  return 0;
}

/* Writes `text` as a JSON string. */
static void quote(char *out, const char *text) {
  *out++ = '"';
  for (; *text; text++) {
    unsigned char c = (unsigned char)*text;
    if (c == '"' || c == '\\' || c < 0x20) {
      out += sprintf(out, "\\u%04x", c);
    } else {
      *out++ = (char)c;
    }
  }
  strcpy(out, "\"");
}

int main(int argc, char **argv) {
  const char *path = argc > 1 ? argv[1] : "";
  const char *question = argc > 2 ? argv[2] : "What is the capital of France?";
  int max_tokens = argc > 3 ? atoi(argv[3]) : 128;
  char *quoted = malloc(6 * strlen(question) + 3), *request = malloc(6 * strlen(question) + 256);
  mistral_model *model = NULL;
  mistral_buf *response = NULL;
  mistral_status status;
  int result = 1;

  if (!quoted || !request) {
    fprintf(stderr, "no memory\n");
  } else if ((status = mistral_model_open(path, strlen(path), NULL, 0, NULL, NULL, NULL, &model)) != MISTRAL_OK) {
    fail("open", status);
  } else {
    quote(quoted, question);
    sprintf(request, "{\"messages\": [{\"role\": \"user\", \"content\": %s}], \"max_tokens\": %d, \"stream\": true}",
            quoted, max_tokens);
    status = mistral_chat(model, request, strlen(request), NULL, print, NULL, &response);
    result = status == MISTRAL_OK ? 0 : fail("chat", status);
  }
  mistral_buf_free(response);
  mistral_model_free(model);
  free(quoted);
  free(request);
  return result;
}
