/* What the programs of this folder check with: a check that fails says where, and what the library said. */
#ifndef CHECK_H
#define CHECK_H

#include "mistral.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                            \
  do {                                                                                              \
    if (!(condition)) {                                                                             \
      char message_[512];                                                                           \
      mistral_last_error(message_, sizeof message_);                                                \
      fprintf(stderr, "%s:%d: %s\n  last error: %s\n", __FILE__, __LINE__, #condition, message_);   \
      exit(1);                                                                                      \
    }                                                                                               \
  } while (0)
#define OK(call) CHECK((call) == MISTRAL_OK)

#endif
