// Generates step by step, choosing each token itself: steps MODEL [TEXT [MAX_TOKENS]]
#include <mistral.hpp>

#include <algorithm>
#include <iostream>
#include <string>
#include <vector>

int main(int argc, char **argv) try {
  const std::string text = argc > 2 ? argv[2] : "Once upon a time";
  const int steps = argc > 3 ? std::stoi(argv[3]) : 64;
  const mistral::Model model = mistral::Model::open(argc > 1 ? argv[1] : "");
  mistral::Session session = model.session();
  session.prefill(model.encode(text, "{\"bos\": true}"));
  for (int step = 0; step < steps; step++) {
    const std::vector<float> logits = session.logits();
    const std::uint32_t token[] = {
        static_cast<std::uint32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin())};
    std::cout << model.decode(token).str() << std::flush;
    session.prefill(token);
  }
  std::cout << std::endl;
} catch (const mistral::Error &error) {
  std::cerr << error.name() << ": " << error.what() << std::endl;
  return 1;
}
