// The AI SDK over both of its providers: a stream, a tool in two steps, structured text.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const [url, model, say, args] = process.argv.slice(2);
const baseURL = `${url}/v1`;

async function converse(languageModel) {
  const common = { model: languageModel, temperature: 0, maxRetries: 0 };
  let streamed = "";
  for await (const piece of streamText({ ...common, prompt: say }).textStream) streamed += piece;
  const called = [];
  const weather = tool({
    description: "The weather of a city.",
    inputSchema: z.object({ city: z.string() }),
    execute: async (given) => {
      called.push("weather", given);
      return "sun";
    },
  });
  const { text: after } = await generateText({ ...common, prompt: args, tools: { weather }, stopWhen: stepCountIs(3) });
  const output = Output.object({ schema: z.object({ city: z.string() }) });
  const structured = await generateText({ ...common, prompt: args, output });
  return { streamed, called, after, structured: structured.output };
}

const compatible = createOpenAICompatible({ name: "engine", baseURL, supportsStructuredOutputs: true });
const openai = createOpenAI({ baseURL, apiKey: "none" });
console.log(JSON.stringify({ ...(await converse(compatible(model))), responses: await converse(openai.responses(model)) }));
