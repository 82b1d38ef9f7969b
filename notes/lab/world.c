// world.c - the tiny world: texts to learn from when no data is at hand, made from a seed.
//
//     mkdir -p out/lab && cc -O3 -march=native -o out/lab/world notes/lab/world.c -lm
//     out/lab/world --out out/world --seed 1 --documents 30000
//
// The world has people, animals and cities. Each of them has three properties: where a person
// lives, what an animal eats, what a city is known for. The seed decides these facts, and texts
// tell them in many wordings, in English and in Chinese. Short stories and worked sums are added.
// A small model learns all of it in minutes, and we can compute how well it could have learned it.
//
// A TEMPLATE is a string with two kinds of marks. [a|b|c] draws one of its alternatives, which may
// contain more brackets. $x draws a word from word list x; if x is not the name of a word list, it
// inserts variable x. With $n = "Bob" and a word list a of 16 animals,
//
//     "[Today|[Late|Early] at night] $n saw a $a."    can become    "Late at night Bob saw a fox."
//
// with three draws: one of 2 (outer bracket), one of 2 (inner bracket), one of 16 (animals).
//
// THE FLOOR. A draw takes each of its n alternatives with probability 1/n. The probability p of a
// text is the product over its draws: above, 1/2 * 1/2 * 1/16 = 1/64. A model that gives the text
// the probability q needs -log2 q bits for it. On average over the texts, -log2 q cannot be smaller
// than -log2 p, here 6 bits; the average of -log2 p is the entropy of the source. Every text is
// stored with its -log2 p as "bits". `minimind eval` adds them up and prints bits per byte as the
// floor; what a model needs beyond the floor is what it has not learned. An example:
//
//     {"text": "Add 342+71:\n2+1=3\n4+7=11\n3+0+1=4\n=413", "bits": 24.7975}
//
//     a sum: 2 of 10 topics     log2(10 / 2)                 2.3219
//     in English, not Chinese   log2(2)                      1
//     "Add", one of 4 verbs     log2(4)                      2
//     342                       log2(3) + log2(900)         11.3987      3 digits, then which
//     71                        log2(3) + log2(90)           8.0768      2 digits, then which
//     the rest                                               0           follows from 342 and 71
//
// Facts need no bits either: they are the same in all texts of the world, so a model can know them.
// If two different sequences of draws made the same text, its probability would be the sum of
// both, and the floor would be too high. The templates below avoid that.
//
// THE FILES, for N documents (JSONL, one record per line):
//
//     pretrain   N        {"text", "bits"}: texts for pretraining
//     again      N / 20   more such texts, mixed into SFT so that the model does not forget them
//     sft        N / 12   {"conversations"}: one to four questions about facts, answered in two
//                         manners
//     keep       N / 30   the same in the preferred manner only, mixed into stages after DPO so
//                         that the model forgets neither the facts nor the manner
//     dpo        N / 60   {"chosen", "rejected"}: one question, answered in both manners
//     reason     N / 8    {"conversations"}: one to four questions about facts and sums, the last
//                         one a sum; sums have "reasoning_content", worked digit by digit
//     few        N / 16   the same, but so few that a model learns sums only in part
//     grpo       N / 8    {"conversations", "gt"}: one or two turns, with an empty reply at the
//                         end; the model replies, and is rewarded if it says "gt"
//
// Each except `again` and `few` has a NAME_held_out.jsonl, which is for measuring only. In those of
// sft, keep and reason one question is asked; sft and reason also have NAME_held_out_turn_2.jsonl
// and NAME_held_out_turn_3.jsonl, where one or two other questions come before it. "gt" lists the
// answers that are right: in both manners.

// The book has the random numbers, growing strings, JSON, files and options that are used here.
#define main minimind_main
#include "../../minimind.c"
#undef main

enum { ENGLISH, CHINESE, LANGUAGES };
typedef const char *const Bilingual[LANGUAGES]; // the same in both languages

// The world, and the text that is being written about it.
typedef struct {
    uint64_t seed;      // decides all facts
    uint64_t stream;    // of random numbers
    uint64_t n_drawn;   // numbers used so far; the next one is uniform(stream, n_drawn)
    double bits;        // -log2 of the probability of the draws of this text
    int language;       // ENGLISH or CHINESE
    Text text;          // what is written so far
    Text variable[128]; // variable['x'] is the template that $x inserts
} World;

// ---- templates ----------------------------------------------------------------------------------

// A piece of a string, up to but not including `to`. As a list, its items are separated by "|".
typedef struct {
    const char *from, *to;
} Template;

static Template whole(const char *s) { return (Template){s, s + strlen(s)}; }

// The lists that $x draws from: N names (women and men in turn), C cities, a animals, J jobs,
// F food, l landscapes, k colours, W waters, G sights, K weather, x objects, w times, z sizes.
static const struct {
    char name;
    Bilingual words;
} word_lists[] = {
    {'N', {"Anna|Adam|Bella|Bob|Clara|Carl|Diana|David|Emma|Eric|Fiona|Frank|Grace|George|Helen|"
           "Henry|Iris|Ivan|Julia|Jack|Kate|Kevin|Lily|Leo|Mary|Mark|Nora|Nick|Olga|Oscar|Paula|"
           "Peter|Rosa|Robert|Sarah|Simon|Tina|Tom|Vera|Victor",
           "小红|小明|秀英|建国|丽丽|大伟|春梅|志强|小芳|国庆|玉兰|文杰|雪梅|海涛|桂花|永强|小燕|天宇|美玲|立新|月娥|俊峰|"
           "佳佳|浩然|婷婷|志远|素珍|德华|小兰|长江|金凤|少华|文静|铁柱|翠花|阿强|思思|子轩|巧云|老王"}},
    {'C', {"Paris|London|Rome|Berlin|Madrid|Vienna|Athens|Lima|Oslo|Cairo|Tokyo|Delhi|Quito|Dublin|"
           "Prague|Lisbon",
           "巴黎|伦敦|罗马|柏林|马德里|维也纳|雅典|利马|奥斯陆|开罗|东京|德里|基多|都柏林|布拉格|里斯本"}},
    {'a', {"cat|dog|fox|bear|rabbit|duck|horse|cow|wolf|sheep|mouse|goat|owl|frog|pig|deer",
           "猫|狗|狐狸|熊|兔子|鸭子|马|牛|狼|绵羊|老鼠|山羊|猫头鹰|青蛙|猪|鹿"}},
    {'J', {"teacher|doctor|nurse|cook|farmer|singer|painter|writer|driver|pilot|baker|dancer|"
           "lawyer|judge|sailor|tailor",
           "老师|医生|护士|厨师|农民|歌手|画家|作家|司机|飞行员|面包师|舞蹈家|律师|法官|水手|裁缝"}},
    {'F', {"rice|noodles|soup|bread|fish|cheese|eggs|cake|apples|pears|grapes|tofu|beans|corn|"
           "honey|salad",
           "米饭|面条|热汤|面包|鱼|奶酪|鸡蛋|蛋糕|苹果|梨子|葡萄|豆腐|豆子|玉米|蜂蜜|沙拉"}},
    {'l', {"forest|valley|desert|field|garden|swamp|cave|village",
           "森林|山谷|沙漠|田野|花园|沼泽|山洞|村庄"}},
    {'k', {"red|white|black|brown|grey|yellow|green|blue",
           "红色|白色|黑色|棕色|灰色|黄色|绿色|蓝色"}},
    {'W', {"river|sea|lake|canal",
           "河|海|湖|运河"}},
    {'G', {"bridges|towers|parks|markets|museums|boats|trains|music",
           "桥|高塔|公园|集市|博物馆|船|火车|音乐"}},
    {'K', {"hot|cold|rainy|windy|sunny|foggy|snowy|mild",
           "炎热|寒冷|多雨|多风|晴朗|多雾|多雪|温和"}},
    {'x', {"hat|book|cup|lamp|chair|bag|mirror|ball|kite|clock|drum|bell|box|ring|basket|candle",
           "帽子|本子|杯子|台灯|椅子|袋子|镜子|皮球|风筝|闹钟|小鼓|铃铛|箱子|戒指|篮子|蜡烛"}},
    {'w', {"Yesterday|Last night|This morning|On Sunday",
           "昨天|昨晚|今天早上|星期天"}},
    {'z', {"small|big|young|shy",
           "小小的|大大的|年轻的|害羞的"}},
};
enum { WORD_LISTS = sizeof word_lists / sizeof *word_lists };

// The words of a list in the language of the text. If no list has that name: {NULL, NULL}.
static Template find_words(const World *world, char name) {
    for (int i = 0; i < WORD_LISTS; i++)
        if (word_lists[i].name == name) return whole(word_lists[i].words[world->language]);
    return (Template){NULL, NULL};
}

// The ] that closes the [ at `open`.
static const char *closing_bracket(const char *open) {
    const char *s = open;
    int depth = 1;
    while (depth > 0) {
        s++;
        if (*s == '[') depth++;
        if (*s == ']') depth--;
    }
    return s;
}

// Where the first item of a list ends: at a | outside of brackets, or at the end of the list.
static const char *end_of_item(Template list) {
    const char *s = list.from;
    while (s < list.to && *s != '|') {
        if (*s == '[') s = closing_bracket(s);
        s++;
    }
    return s;
}

static size_t count_items(Template list) {
    size_t n = 1;
    const char *end = end_of_item(list);
    while (end < list.to) {
        n++;
        end = end_of_item((Template){end + 1, list.to});
    }
    return n;
}

static Template item_at(Template list, size_t i) {
    for (; i > 0; i--) list.from = end_of_item(list) + 1;
    return (Template){list.from, end_of_item(list)};
}

// Draws one of the numbers 0 .. n - 1. Every draw of a text is made, and its bits counted, here.
static size_t choose(World *world, size_t n) {
    double u = uniform(world->stream, world->n_drawn);
    world->n_drawn++;
    world->bits += log2((double)n);
    return (size_t)(u * (double)n);
}

static Template choose_item(World *world, Template list) {
    return item_at(list, choose(world, count_items(list)));
}

// Appends a template to the text, with its draws made and its variables inserted.
static void tell(World *world, Template t) {
    for (const char *s = t.from; s < t.to; s++) {
        if (*s == '[') {
            const char *close = closing_bracket(s);
            tell(world, choose_item(world, (Template){s + 1, close}));
            s = close;
        } else if (*s == '$') {
            s++;
            Template words = find_words(world, *s);
            if (words.from) tell(world, choose_item(world, words));
            else tell(world, whole(world->variable[(int)*s].s));
        } else {
            text_append(&world->text, s, 1);
        }
    }
}

static void set_variable(World *world, char name, Template value) {
    Text *variable = &world->variable[(int)name];
    variable->len = 0;
    text_append(variable, value.from, (size_t)(value.to - value.from));
}

// ---- things and their facts ---------------------------------------------------------------------
//
// A thing is a person, an animal or a city. Templates about it use the variables
//
//     $n           its name
//     $S $s $o $H  "She", "she", "her", "Her", or the name: "Anna", "Anna", "Anna", "Anna's".
//                  Subject at the start of a sentence, other subject, object, possessive
//     $v           the value of the property, for example the city where a person lives
//
// Every wording uses one of $S $s $o $H, because a draw decides between pronoun and name. In a
// wording without them both outcomes would give the same text, and the floor would be too high.
//
// The first wording of a property is also the answer to its questions, always with a pronoun. If it
// began with a name, held-out questions would measure the wrong thing: SFT has never trained the
// model to say those names in an answer, so it would say a trained name, and then continue with the
// facts about that thing.

enum { PEOPLE, ANIMALS, CITIES, KINDS };                // kinds of things
enum { SHE, HE, IT, BY_NAME, BY_THE_NAME, REFERENCES }; // ways to refer to a thing

typedef struct {
    char values;         // the word list of its possible values
    Bilingual wordings;  // a list of 6 templates that tell the value
    Bilingual questions; // a list of 4 templates that ask for it
} Property;

typedef struct {
    char names;             // the word list of the things
    size_t names_per_thing; // see below
    int by_name;            // BY_NAME: "Anna"; BY_THE_NAME: "the fox"
    Bilingual opening;      // a list: first sentences of a text
    Bilingual event;        // last sentence: something that happened
    Property property[3];
} Kind;

// Facts are drawn for each language separately. Anna and 小红 are two people, so both languages use
// all their names. But a fox and a 狐狸 with different colours would be a contradiction. So animals
// and cities have 2 names per thing: English uses names 0, 2, 4 ... and Chinese names 1, 3, 5 ...
static const Kind kinds[KINDS] = {
    [PEOPLE] = {'N', 1, BY_NAME,
     {"This is $n.|Do you know $n?|Let me tell you about $n.|My friend is called $n.|Who is $n?|"
      "What about $n?|Tell me about $n.|Where is $n?",
      "这是$n。|你认识$n吗？|我来说说$n。|我的朋友叫$n。|谁是$n？|$n怎么样？|告诉我$n的事。|$n在哪里？"},
     {"$w $s [bought|found|lost|sold|painted|washed|hid|broke] a $k $x.",
      "$w$s[买了|找到|弄丢了|卖掉|画了|洗了|藏起|打破了]一个$k的$x。"},
     {{'C', {"$S lives in $v.|$H home is in $v.|$S has a house in $v.|You can find $o in $v.|"
             "Every evening $s goes home to $v.|$v is where $s lives.",
             "$S住在$v。|$S的家在$v。|$S在$v有一座房子。|你可以在$v找到$s。|每天晚上$s回到$v的家。|$v是$s居住的城市。"},
       {"Where does $n live?|Which city does $n live in?|Where is the home of $n?|"
        "Tell me where $n lives.",
        "$n住在哪里？|$n住在哪个城市？|$n的家在哪里？|告诉我$n住在哪里。"}},
      {'J', {"$S works as a $v.|$S is a $v.|$S has been a $v for years.|$H job is to be a $v.|"
             "Every day $s works hard as a $v.|Everyone knows that $s is a $v.",
             "$S是一名$v。|$S的工作是$v。|$S当$v很多年了。|每天$s都做$v的工作。|大家都知道$s是$v。|$S靠当$v挣钱。"},
       {"What does $n work as?|What is the job of $n?|What does $n do for a living?|"
        "Tell me the job of $n.",
        "$n是做什么的？|$n的工作是什么？|$n靠什么挣钱？|告诉我$n的工作。"}},
      {'F', {"$S likes to eat $v.|$H favourite food is $v.|$S eats $v every day.|"
             "For dinner $s always has $v.|$S loves $v more than anything.|"
             "Nothing makes $o happier than $v.",
             "$S喜欢吃$v。|$S最爱的食物是$v。|$S每天都吃$v。|晚饭$s总是吃$v。|没有什么比$v更让$s开心。|$S从小就爱吃$v。"},
       {"What does $n like to eat?|What is the favourite food of $n?|What does $n eat?|"
        "Tell me what $n likes to eat.",
        "$n喜欢吃什么？|$n最爱的食物是什么？|$n每天吃什么？|告诉我$n喜欢吃什么。"}}}},
    [ANIMALS] = {'a', 2, BY_THE_NAME,
     {"Look at the $n.|What do we know about the $n?|Here comes the $n.|I like the $n.",
      "看看$n。|我们来认识$n。|看，$n来了。|我喜欢$n。"},
     {"$w $s [saw|chased|followed|heard|met|woke|helped|lost] a $k $a.",
      "$w$s[看见|追赶|跟着|听见|遇到|吵醒|帮助|丢下]一只$k的$a。"},
     {{'l', {"$S lives in the $v.|$H home is the $v.|$S sleeps in the $v.|"
             "You can find $o in the $v.|At night $s goes back to the $v.|"
             "The $v is where $s lives.",
             "$S住在$v里。|$S的家是$v。|$S在$v里睡觉。|你可以在$v里找到$s。|夜里$s回到$v。|$v是$s生活的地方。"},
       {"Where does the $n live?|Where is the home of the $n?|Where does the $n sleep?|"
        "Tell me where the $n lives.",
        "$n住在哪里？|$n的家在哪里？|$n在哪里睡觉？|告诉我$n住在哪里。"}},
      {'k', {"$S is $v.|$H colour is $v.|$S has a $v back.|You know $o by the colour $v.|"
             "From head to tail $s is $v.|$H coat looks $v.",
             "$S是$v的。|$S的颜色是$v。|$S的背是$v的。|看到$v就认得$s。|从头到尾$s都是$v。|$S的毛皮看起来是$v。"},
       {"What colour is the $n?|What is the colour of the $n?|Which colour does the $n have?|"
        "Tell me the colour of the $n.",
        "$n是什么颜色的？|$n的颜色是什么？|$n的背是什么颜色？|告诉我$n的颜色。"}},
      {'F', {"$S likes to eat $v.|$H favourite food is $v.|$S eats $v every day.|"
             "In the morning $s looks for $v.|$S would do anything for $v.|Give $o some $v.",
             "$S喜欢吃$v。|$S最爱的食物是$v。|$S每天都吃$v。|早上$s去找$v。|为了$v$s什么都肯做。|给$s一些$v吧。"},
       {"What does the $n like to eat?|What is the favourite food of the $n?|What does the $n eat?|"
        "Tell me what the $n likes to eat.",
        "$n喜欢吃什么？|$n最爱的食物是什么？|$n每天吃什么？|告诉我$n喜欢吃什么。"}}}},
    [CITIES] = {'C', 2, BY_NAME,
     {"Welcome to $n.|Have you been to $n?|This book is about $n.|We are going to $n.",
      "欢迎来到$n。|你去过$n吗？|这本书讲的是$n。|我们要去$n。"},
     {"$w a $z $k $a was seen near $o.",
      "$w有一只$z$k的$a来到$s旁边。"},
     {{'W', {"$S lies by the $v.|$H houses stand near the $v.|$S was built at the $v.|"
             "You see the $v from $o.|In summer all of $o meets at the $v.|A $v is close to $o.",
             "$S在$v边。|$S的房子靠近$v。|$S建在$v旁。|从$s看得到$v。|夏天$s的人都去$v边。|$v就在$s旁边。"},
       {"Which water does $n lie by?|What water is close to $n?|Where was $n built?|"
        "Tell me which water is near $n.",
        "$n在什么水边？|$n靠近什么？|$n建在哪里？|告诉我$n旁边是什么水。"}},
      {'G', {"$S is known for its $v.|$H pride is its $v.|$S has the best $v.|"
             "People come to $o for the $v.|In old songs $s is praised for its $v.|"
             "You will love the $v of $o.",
             "$S以$v闻名。|$S的骄傲是$v。|$S有最好的$v。|人们为了$v来到$s。|老歌里唱着$s的$v。|你会爱上$s的$v。"},
       {"What is $n known for?|What is the pride of $n?|Why do people come to $n?|"
        "Tell me what $n is known for.",
        "$n以什么闻名？|$n的骄傲是什么？|人们为什么来$n？|告诉我$n以什么闻名。"}},
      {'K', {"$S is a $v place.|$H weather is $v.|$S has $v days all year.|"
             "The wind brings $v days to $o.|Even in spring $s is $v.|"
             "They say that $s is always $v.",
             "$S是个$v的地方。|$S的天气$v。|$S全年都很$v。|风给$s带来$v的日子。|就算春天$s也很$v。|人们说$s总是很$v。"},
       {"How is the weather in $n?|What kind of place is $n?|What are the days like in $n?|"
        "Tell me about the weather in $n.",
        "$n的天气怎么样？|$n是个什么样的地方？|$n全年怎么样？|告诉我$n的天气。"}}}},
};

// How many things of a kind exist in the language of the text.
static size_t count_things(const World *world, int k) {
    return count_items(find_words(world, kinds[k].names)) / kinds[k].names_per_thing;
}

// Sets $n to the name of a thing, and $S $s $o $H to its name or to its pronouns.
static void set_thing(World *world, int k, size_t thing, bool by_name) {
    static const char *const references[LANGUAGES][REFERENCES][4] = { // $S, $s, $o, $H
        {{"She", "she", "her", "Her"}, {"He", "he", "him", "His"}, {"It", "it", "it", "Its"},
         {"$n", "$n", "$n", "$n's"}, {"The $n", "the $n", "the $n", "The $n's"}},
        {{"她", "她", "她", "她"}, {"他", "他", "他", "他"}, {"它", "它", "它", "它"},
         {"$n", "$n", "$n", "$n"}, {"$n", "$n", "$n", "$n"}}};
    const Kind *kind = &kinds[k];
    size_t name = thing;
    if (kind->names_per_thing == 2) name = 2 * thing + (size_t)world->language;
    set_variable(world, 'n', item_at(find_words(world, kind->names), name));

    int reference = IT;
    if (k == PEOPLE) reference = thing % 2 == 0 ? SHE : HE;
    if (by_name) reference = kind->by_name;
    for (int i = 0; i < 4; i++)
        set_variable(world, "SsoH"[i], whole(references[world->language][reference][i]));
}

// Sets $v to the value of property p of a thing. There is no table of facts: a fact is a hash of
// seed, language, kind, property and thing, so it is the same in every text, and another seed gives
// another world. As it is not drawn by choose(), it adds no bits to a text.
static void set_value(World *world, int k, size_t thing, int p) {
    Template values = find_words(world, kinds[k].property[p].values);
    uint64_t stream = splitmix64(world->seed ^ 0xFAC7);
    stream += (uint64_t)(k * 1000 + p * 100 + world->language * 10);
    uint64_t hash = splitmix64(stream + splitmix64(thing));
    set_variable(world, 'v', item_at(values, hash % count_items(values)));
}

// ---- texts --------------------------------------------------------------------------------------

// An opening, the three properties of a thing in any order, and an event.
static void tell_thing(World *world, int k) {
    static Bilingual space = {" ", ""};
    const Kind *kind = &kinds[k];
    int language = world->language;
    size_t thing = choose(world, count_things(world, k));
    int first = (int)choose(world, 3);
    bool backwards = choose(world, 2) == 1;

    set_thing(world, k, thing, false);
    tell(world, choose_item(world, whole(kind->opening[language])));

    // From property `first` on, upwards or downwards modulo 3: each of the six orders once. The
    // first sentence always has a pronoun, which shows whether a person is a woman or a man. In the
    // others a draw decides between pronoun and name.
    for (int i = 0; i < 3; i++) {
        int p = (first + (backwards ? 3 - i : i)) % 3;
        bool by_name = i > 0 && choose(world, 2) == 1;
        set_thing(world, k, thing, by_name);
        set_value(world, k, thing, p);
        tell(world, whole(space[language]));
        tell(world, choose_item(world, whole(kind->property[p].wordings[language])));
    }

    set_thing(world, k, thing, false);
    tell(world, whole(space[language]));
    tell(world, whole(kind->event[language]));
}

// A person finds an animal in need and helps. Item i of `helps` is the help for item i of `needs`.
// Place, colour and animal occur more than once, so they are drawn once, into variables.
static void tell_story(World *world) {
    static Bilingual needs = {"hungry|tired|sad|lost", "饿了|累了|很难过|迷路了"};
    static Bilingual helps = {
        "gave it some $F|let it sleep in a warm bed|told it a funny story|"
        "showed it the way to the $h",
        "给它一些$F|让它在温暖的床上睡觉|给它讲了一个好笑的故事|带它走回$h"};
    static Bilingual story = {
        "[One day|One morning|Last week|In the spring|Long ago|After the rain] $n "
        "[went|walked|ran|rode] to the $h with a $k $x "
        "[to play|to rest|to pick flowers|all alone]. "
        "[There|On the way|Near a tree|Behind a stone] $s [saw|met|found|heard] a $z $c $b. "
        "The $b was $d. So $n $e. "
        "[The $b was happy again.|\"Thank you,\" said the $b.|The $b jumped for joy.|"
        "The $b smiled.] "
        "[From that day on they were friends.|Then they [sang|danced|laughed|played] together.|"
        "In the evening $s went home.|The next day $s came back.]",
        "[有一天|一天早上|上个星期|春天里|很久以前|雨停以后]，"
        "$n带着$k的$x[去|走到|跑到|骑车到]$h[玩|休息|采花|散步]。"
        "[在那里|在路上|在树边|在石头后面]，$s[看见|遇到|发现|听见]一只$z$c的$b。$b$d。于是$n$e。"
        "[$b又高兴了。|“谢谢你。”$b说。|$b高兴得跳起来。|$b笑了。]"
        "[从那天起他们成了朋友。|然后他们一起[唱歌|跳舞|大笑|玩耍]。|"
        "晚上$s回家了。|第二天$s又来了。]"};

    set_thing(world, PEOPLE, choose(world, count_things(world, PEOPLE)), false);
    set_variable(world, 'h', choose_item(world, find_words(world, 'l'))); // place
    set_variable(world, 'c', choose_item(world, find_words(world, 'k'))); // colour
    set_variable(world, 'b', choose_item(world, find_words(world, 'a'))); // animal

    size_t need = choose(world, 4);
    set_variable(world, 'd', item_at(whole(needs[world->language]), need));
    set_variable(world, 'e', item_at(whole(helps[world->language]), need));
    tell(world, whole(story[world->language]));
}

// Appends the work of a sum, one line per digit from the right, with +1 for a carry:
//     304+578:   4+8=12   0+7+1=8   3+5=8
//     95+8:      5+8=13   9+0+1=10
static void work_sum(Text *work, int a, int b) {
    int carry = 0;
    while (a > 0 || b > 0) {
        int sum = a % 10 + b % 10 + carry;
        text_printf(work, "%d+%d%s=%d\n", a % 10, b % 10, carry ? "+1" : "", sum);
        carry = sum > 9;
        a /= 10;
        b /= 10;
    }
}

static void tell_sum(World *world, int a, int b) {
    static Bilingual verbs = {"[Add|Work out|What is|Find] ", "[计算|求|算一算|请算]"};
    tell(world, whole(verbs[world->language]));
    text_printf(&world->text, "%d+%d:\n", a, b);
    work_sum(&world->text, a, b);
    text_printf(&world->text, "=%d", a + b);
}

// A hash holds out one in ten of all possible texts, so no text is in both parts.
static bool is_held_out_text(const char *s) { return splitmix64(fnv1a64(s)) % 10 == 0; }

// One in ten sums is held out. Only the two numbers count, in any order: a held-out sum occurs in
// no training file, in no wording.
static bool is_held_out_sum(int a, int b) {
    int both = a < b ? 1000 * a + b : 1000 * b + a;
    return splitmix64((uint64_t)both) % 10 == 0;
}

// A number of one to three digits, each length as often as the others.
static int choose_number(World *world) {
    static const int least[] = {1, 10, 100};
    int first = least[choose(world, 3)];
    return first + (int)choose(world, (size_t)first * 9);
}

// Draws a text and its bits. Returns true if it belongs to the held-out part.
static bool draw_text(World *world) {
    world->text.len = 0;
    world->bits = 0;
    size_t topic = choose(world, 10);
    world->language = (int)choose(world, 2);

    // Topics 0 to 3 are people, 4 animals, 5 cities, 6 and 7 stories, 8 and 9 sums. A text does not
    // show which of its numbers was drawn: a text about people has probability 4/10, not 1/10.
    static const double n_alike[10] = {4, 4, 4, 4, 1, 1, 2, 2, 2, 2};
    world->bits -= log2(n_alike[topic]);

    if (topic >= 8) {
        int a = choose_number(world);
        int b = choose_number(world);
        tell_sum(world, a, b);
        return is_held_out_sum(a, b);
    }
    if (topic < 4) tell_thing(world, PEOPLE);
    else if (topic == 4) tell_thing(world, ANIMALS);
    else if (topic == 5) tell_thing(world, CITIES);
    else tell_story(world);
    return is_held_out_text(world->text.s);
}

// Makes text i of the training or of the held-out part: draws again until the text belongs to it.
// The bits remain those of a text among all texts. Given the part, they are fewer by log2(10/9) =
// 0.15 (training) or log2(10) = 3.3 (held-out), but to save those a model would have to know the
// hash, and a hash cannot be learned from texts.
static void make_text(World *world, uint64_t i, bool held_out) {
    world->stream = splitmix64(world->seed) + splitmix64(2 * i + held_out);
    world->n_drawn = 0;
    while (draw_text(world) != held_out) continue;
}

// ---- questions ----------------------------------------------------------------------------------
//
// Training questions ask about one half of all things, held-out questions about the other half.
// Pretraining texts tell the facts of both. So the model must take the answer to a held-out
// question from its pretraining; SFT has taught it only the form. If both asked about the same
// things, it could repeat answers from SFT, and a right answer would prove nothing.
//
// An answer has one of two manners, friendly "She lives in Oslo. :)" or plain "She lives in Oslo."
// In sft.jsonl, questions 0 and 2 of a property have friendly answers, 1 and 3 plain ones.
// dpo.jsonl prefers the friendly manner and asks only questions 1 and 3. Questions 0 and 2 get
// friendly answers already: to train on them too would change nothing and cost some knowledge.
//
// People ask several things in a row. A model that has only seen first questions answers the second
// one badly, so conversations have one to four turns.

enum { SFT_FILE, KEEP_FILE, DPO_FILE, REASON_FILE, FEW_FILE, GRPO_FILE, QUESTION_FILES };
enum { QUESTIONS = 4, HELD_OUT_SUMS = 200 };

static const struct {
    const char *name;
    size_t documents_per_record;
    bool sums;           // the last question is a sum, and half of those before it are
    size_t most_turns;   // of a conversation
    size_t last_held_out; // held-out files for the first turn up to this one; 0: none
} question_files[QUESTION_FILES] = {
    [SFT_FILE] = {"sft", 12, false, 4, 3},   [KEEP_FILE] = {"keep", 30, false, 4, 1},
    [DPO_FILE] = {"dpo", 60, false, 1, 1},   [REASON_FILE] = {"reason", 8, true, 4, 3},
    [FEW_FILE] = {"few", 16, true, 4, 0},    [GRPO_FILE] = {"grpo", 8, true, 2, 1},
};

typedef struct {
    int language, kind, property;
    size_t thing;
} Fact;

typedef struct { Fact *fact; size_t n; } Facts;

// All facts of one half of the things; the caller frees them. Every other pair of things is held
// out: pairs, because women and men take turns and each half needs both.
static Facts list_facts(World *world, bool held_out) {
    Facts list = {NULL, 0};
    for (int language = 0; language < LANGUAGES; language++) {
        world->language = language;
        for (int k = 0; k < KINDS; k++)
            for (size_t thing = 0; thing < count_things(world, k); thing++) {
                if ((thing / 2 % 2 == 1) != held_out) continue;
                list.fact = xrealloc(list.fact, list.n + 3, sizeof *list.fact);
                for (int p = 0; p < 3; p++) list.fact[list.n++] = (Fact){language, k, p, thing};
            }
    }
    return list;
}

// A question with its answer in both manners; a sum has only one, and thoughts.
typedef struct {
    char *text, *thoughts, *plain, *friendly;
    bool smiles; // the answer in sft.jsonl is the friendly one
} Question;

// A template as a new string. The caller frees it.
static char *tell_alone(World *world, Template t) {
    world->text.len = 0;
    tell(world, t);
    return format("%s", world->text.s);
}

// Question q about a fact.
static Question ask_fact(World *world, Fact fact, size_t q) {
    const Property *property = &kinds[fact.kind].property[fact.property];
    world->language = fact.language;
    set_thing(world, fact.kind, fact.thing, false);
    set_value(world, fact.kind, fact.thing, fact.property);

    Question question = {.smiles = q % 2 == 0};
    question.text = tell_alone(world, item_at(whole(property->questions[fact.language]), q));
    question.plain = tell_alone(world, item_at(whole(property->wordings[fact.language]), 0));
    question.friendly = format("%s :)", question.plain);
    return question;
}

// A sum of the training or of the held-out part.
static Question ask_sum(World *world, bool held_out) {
    int a, b;
    do {
        a = choose_number(world);
        b = choose_number(world);
    } while (is_held_out_sum(a, b) != held_out);

    Text work = {0};
    work_sum(&work, a, b);
    work.s[work.len - 1] = '\0'; // without the last newline
    return (Question){.text = format("%d+%d=?", a, b), .thoughts = work.s,
                      .plain = format("%d", a + b), .friendly = format("%d", a + b)};
}

static void free_question(Question *q) {
    free(q->text);
    free(q->thoughts);
    free(q->plain);
    free(q->friendly);
}

static void add_turn(Text *messages, const Question *q, const char *thoughts, const char *answer) {
    add_message(messages, "user", NULL, q->text);
    add_message(messages, "assistant", thoughts, answer);
}

// A training question for a file: a fact or, for the files with sums, perhaps a sum.
static Question draw_question(World *world, int file, const Facts *training) {
    if (question_files[file].sums && choose(world, 2) == 1) return ask_sum(world, false);
    const Fact *fact = &training->fact[choose(world, training->n)];
    return ask_fact(world, *fact, choose(world, QUESTIONS));
}

// Appends "key": [the turns so far, the last question, an answer to it].
static void add_list(Text *line, const char *key, const Text *before, const Question *last,
                     const char *thoughts, const char *answer) {
    text_printf(line, "%s\"%s\": [%s", line->len ? ", " : "", key, before->len ? before->s : "");
    add_turn(line, last, thoughts, answer);
    text_add(line, "]");
}

// Appends a record of `turns` questions, of which the given one is the last.
static void add_conversation(World *world, Text *line, int file, const Facts *training,
                             size_t turns, const Question *last, bool held_out) {
    Text before = {0};
    for (size_t i = 1; i < turns; i++) {
        Question q = draw_question(world, file, training);
        bool smiles = file != SFT_FILE || q.smiles;
        add_turn(&before, &q, q.thoughts, smiles ? q.friendly : q.plain);
        free_question(&q);
    }

    bool smiles = file != SFT_FILE || last->smiles;
    if (file == DPO_FILE) {
        add_list(line, "chosen", &before, last, NULL, last->friendly);
        add_list(line, "rejected", &before, last, NULL, last->plain);
    } else if (file == GRPO_FILE) {
        add_list(line, "conversations", &before, last, NULL, "");
        text_printf(line, ", \"gt\": [\"%s\"]", last->plain);
    } else {
        const char *said = smiles ? last->friendly : last->plain;
        add_list(line, "conversations", &before, last, last->thoughts, said);
        if (held_out && !last->thoughts)
            text_printf(line, ", \"gt\": [\"%s\", \"%s\"]", last->plain, last->friendly);
    }
    free(before.s);
}

// ---- files --------------------------------------------------------------------------------------

// Writes texts first .. first + n - 1 of the training or the held-out part.
static void write_texts(World *world, const char *dir, const char *name, size_t first, size_t n,
                        bool held_out) {
    NewFile file = new_file(dir, name);
    Text line = {0};
    for (size_t i = first; i < first + n; i++) {
        make_text(world, i, held_out);
        line.len = 0;
        json_write_string(&line, world->text.s, world->text.len);
        fprintf(file.f, "{\"text\": %s, \"bits\": %.4f}\n", line.s, world->bits);
    }
    new_file_done(&file);
    free(line.s);
}

// One to four turns: 40, 30, 20 and 10 % of the conversations, where so many are allowed.
static size_t choose_turns(World *world, size_t most) {
    size_t u = choose(world, 10);
    return min_size(most, 1 + (u >= 4) + (u >= 7) + (u >= 9));
}

// Writes one file of questions for training: n records, drawn at random.
static void write_training(World *world, const char *dir, int file, const Facts *training,
                           size_t n) {
    char *name = format("%s.jsonl", question_files[file].name);
    NewFile out = new_file(dir, name);
    world->stream = splitmix64(world->seed + (uint64_t)(1000 * file));
    world->n_drawn = 0;
    for (size_t i = 0; i < n; i++) {
        Text line = {0};
        size_t turns = choose_turns(world, question_files[file].most_turns);
        const Fact *fact = &training->fact[choose(world, training->n)];
        size_t q = choose(world, QUESTIONS);
        if (file == DPO_FILE) q |= 1; // only questions 1 and 3
        Question last = question_files[file].sums ? ask_sum(world, false)
                                                  : ask_fact(world, *fact, q);
        add_conversation(world, &line, file, training, turns, &last, false);
        fprintf(out.f, "{%s}\n", line.s);
        free_question(&last);
        free(line.s);
    }
    new_file_done(&out);
    free(name);
}

// Writes one file of held-out questions, each the last of so many turns: every question about every
// fact once, or some sums. Of the second and third turns a third of the facts is enough.
static void write_held_out(World *world, const char *dir, int file, const Facts *training,
                           const Facts *held_out, size_t turns) {
    char *name = format("%s_held_out.jsonl", question_files[file].name);
    if (turns > 1) {
        free(name);
        name = format("%s_held_out_turn_%zu.jsonl", question_files[file].name, turns);
    }
    NewFile out = new_file(dir, name);
    bool sums = question_files[file].sums;
    size_t n = sums ? HELD_OUT_SUMS : QUESTIONS * held_out->n;
    world->stream = splitmix64(world->seed + (uint64_t)(1000 * file) + turns);
    world->n_drawn = 0;
    for (size_t i = 0; i < n; i += turns > 1 && !sums ? 3 : 1) {
        Text line = {0};
        Question last = sums ? ask_sum(world, true)
                             : ask_fact(world, held_out->fact[i / QUESTIONS], i % QUESTIONS);
        add_conversation(world, &line, file, training, turns, &last, true);
        fprintf(out.f, "{%s}\n", line.s);
        free_question(&last);
        free(line.s);
    }
    new_file_done(&out);
    free(name);
}

static void write_world(const char *dir, uint64_t seed, size_t documents) {
    World world = {.seed = seed};
    write_texts(&world, dir, "pretrain.jsonl", 0, documents, false);
    write_texts(&world, dir, "pretrain_held_out.jsonl", 0, documents / 100 + 200, true);
    write_texts(&world, dir, "again.jsonl", documents, documents / 20, false);
    Facts training = list_facts(&world, false), held_out = list_facts(&world, true);
    for (int file = 0; file < QUESTION_FILES; file++) {
        size_t n = documents / question_files[file].documents_per_record;
        write_training(&world, dir, file, &training, n);
        for (size_t turns = 1; turns <= question_files[file].last_held_out; turns++)
            write_held_out(&world, dir, file, &training, &held_out, turns);
    }
    free(training.fact);
    free(held_out.fact);
    for (int i = 0; i < 128; i++) free(world.variable[i].s);
    free(world.text.s);
}

typedef struct {
    const char *out;
    long seed, documents;
} WorldOptions;

static const Field world_options[] = {
    {"out", "", 's', offsetof(WorldOptions, out), 0, 0, 0, "folder for the files"},
    {"seed", "", 'i', offsetof(WorldOptions, seed), 0, 1e15, 1, "decides the facts and the texts"},
    {"documents", "", 'i', offsetof(WorldOptions, documents), 1, 1e9, 30000,
     "texts in pretrain.jsonl; the sizes of the other training files follow from it"},
};
enum { WORLD_OPTIONS = sizeof world_options / sizeof *world_options };

int main(int argc, char **argv) {
    program = "world";
    if (argc > 1 && (!strcmp(argv[1], "help") || !strcmp(argv[1], "--help"))) {
        printf("usage: world [--out out/world] [--seed 1] [--documents 30000]\n\n");
        for (int i = 0; i < WORLD_OPTIONS; i++)
            printf("    --%-10s %s\n", world_options[i].name, world_options[i].meaning);
        return 0;
    }
    WorldOptions options = {.out = "out/world"};
    parse_options(argv + 1, &(OptionSet){world_options, WORLD_OPTIONS, 0, &options, NULL}, 1, NULL);
    write_world(options.out, (uint64_t)options.seed, (size_t)options.documents);
    return 0;
}
