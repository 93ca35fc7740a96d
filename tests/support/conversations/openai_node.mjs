// OpenAI's client for JavaScript: a stream, a tool and its result, structured text, the same by responses.
import OpenAI from "openai";

const [url, model, say, args] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const common = { model, temperature: 0 };
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false };

let streamed = "";
const stream = await client.chat.completions.create({ ...common, messages: [{ role: "user", content: say }], stream: true });
for await (const chunk of stream) streamed += chunk.choices[0]?.delta?.content ?? "";

const called = [];
const runner = client.chat.completions.runTools({
  ...common,
  messages: [{ role: "user", content: args }],
  tools: [
    {
      type: "function",
      function: {
        name: "weather",
        parameters,
        parse: JSON.parse,
        function: (given) => {
          called.push("weather", given);
          return "sun";
        },
      },
    },
  ],
});
const after = await runner.finalContent();

const parsed = await client.chat.completions.parse({
  ...common,
  messages: [{ role: "user", content: args }],
  response_format: { type: "json_schema", json_schema: { name: "place", strict: true, schema: parameters } },
});

const tools = [{ type: "function", name: "weather", parameters, strict: false }];
const response = await client.responses.create({ ...common, input: args, tools });
const item = response.output.find((each) => each.type === "function_call");
const output = [{ type: "function_call_output", call_id: item.call_id, output: "sun" }];
const goingOn = await client.responses.create({ ...common, input: output, previous_response_id: response.id, tools });
const format = { type: "json_schema", name: "place", strict: true, schema: parameters };
const text = await client.responses.parse({ ...common, input: args, text: { format } });

console.log(
  JSON.stringify({
    streamed,
    called,
    after,
    structured: JSON.parse(parsed.choices[0].message.content),
    responses: { called: [item.name, JSON.parse(item.arguments)], after: goingOn.output_text, structured: JSON.parse(text.output_text) },
  }),
);
