// Generates step by step: looks at the logits, then chooses a token: steps MODEL [TEXT [MAX_TOKENS]]
#include <mistral.hpp>

#include <algorithm>
#include <iostream>
#include <string>
#include <vector>

int main(int argc, char **argv) try {
  const std::string text = argc > 2 ? argv[2] : "Once upon a time";
  const int steps = argc > 3 ? std::stoi(argv[3]) : 16;
  const mistral::Model model = mistral::Model::open(argc > 1 ? argv[1] : "");
  mistral::Session session = model.session();
  session.prefill(model.encode(text, "{\"bos\": true}"));
  for (int step = 0; step < steps; step++) {
    // What a host looks at before it lets the library choose, or chooses itself.
    const std::vector<float> logits = session.logits();
    const float largest = *std::max_element(logits.begin(), logits.end());
    const mistral_token_logprob chosen = session.sample("{\"temperature\": 0.7, \"seed\": 1}");
    const std::uint32_t token[] = {chosen.token};
    std::cout << largest << " " << chosen.logprob << " " << model.decode(token).str() << std::endl;
  }
} catch (const mistral::Error &error) {
  std::cerr << error.name() << ": " << error.what() << std::endl;
  return 1;
}
