"""Words that texts, keys and lists are made of."""

from __future__ import annotations

LANGUAGES = ("en", "zh")


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NOUNS = {
    "en": _listed(
        """
        anchor apple arrow autumn badge bakery balcony banner barrel basket beacon bench bicycle blanket border bottle
        bridge bucket butter button cabin camera canal candle canyon carpet castle cellar chain chapel cherry chimney
        circle clock cloud coast collar column comet compass copper coral corner cotton cradle crystal curtain dancer
        desert diamond dinner doctor dolphin door dragon drawer eagle echo engine falcon farmer feather fence ferry
        field finger flame flower forest fountain galaxy garden gate ginger glacier glove grape guitar hammer harbor
        harvest hazel helmet hill honey horizon hotel island ivory jacket jewel journey jungle kettle kitchen kitten
        ladder lake lantern lemon letter library lighthouse lily lizard magnet maple marble market meadow melon mirror
        monkey mountain museum music needle nest number oak ocean olive orchard orchid otter oyster paddle painter
        palace panther paper parade parrot pearl pebble pencil pepper piano pigeon pillow pilot planet plaza pocket poem
        polish pond prairie prism pumpkin puzzle rabbit raft railway rainbow ranger raven ribbon river robin rocket
        saddle sailor salmon sandal satin school season shadow shelter shovel silver singer sister soldier spider spring
        square stadium station statue stone storm summer sunset table tailor teapot temple theater thread thunder ticket
        tiger timber tower tractor trumpet tulip tunnel turtle umbrella valley velvet village violin voyage wagon walnut
        water whale wheel whistle willow window winter wizard writer yard zebra
        """
    ),
    "zh": _listed(
        """
        苹果 灯塔 港口 书店 山谷 钢琴 车站 花园 月亮 河流 森林 雨伞 桥梁 帽子 海岸 面包 蜡烛 邮局 城堡
        船长 窗户 地图 风筝 铁路 茶壶 毛毯 画家 老虎 鹦鹉 葡萄 柠檬 核桃 蝴蝶 骆驼 海豚 孔雀 兔子 乌龟
        燕子 鲸鱼 沙漠 草原 岛屿 瀑布 冰川 火山 湖泊 田野 果园 码头 隧道 广场 剧院 寺庙 宫殿 博物馆
        图书馆 医院 工厂 农场 市场 厨房 阳台 抽屉 镜子 枕头 地毯 窗帘 篮子 瓶子 水桶 梯子 锤子 钉子
        针线 剪刀 毛笔 信封 报纸 日历 时钟 相机 望远镜 指南针 火箭 飞船 卫星 彗星 银河 彩虹 闪电 台风
        雪花 露水 春天 夏天 秋天 冬天 黎明 黄昏 午夜 节日 婚礼 旅行 歌手 舞者 诗人 医生 教师 农夫 渔夫
        木匠 裁缝 厨师 士兵 骑士 飞行员 珍珠 钻石 翡翠 琥珀 水晶 大理石 丝绸 棉花 羊毛 皮革 竹子 松树
        柳树 枫叶 荷花 菊花 牡丹 玫瑰 茉莉 兰花 蘑菇 南瓜 土豆 番茄 辣椒 大蒜 生姜 蜂蜜 牛奶 豆腐 饺子
        米饭 面条 红茶 咖啡 自行车 拖拉机 渡轮 马车 雪橇 降落伞 气球 喇叭 小号 吉他 琵琶 二胡 鼓手 合唱
        棋盘 拼图 风车 磁铁 齿轮 弹簧 轮胎 油漆 砖块 屋顶 烟囱 地窖 栅栏 小径 池塘 喷泉 雕像 旗帜 徽章
        勋章 王冠 盔甲 盾牌 弓箭 宝剑 战马 骑兵 堡垒 哨兵 信使 密码 沙滩 珊瑚 贝壳 帆船 石榴 樱桃 草莓 西瓜 香蕉 菠萝
        """
    ),
}
"""Common nouns, each once."""

ADJECTIVES = {
    "en": _listed(
        """
        amber ancient brave bright broken calm clever cold crimson curious dusty eager early empty fancy famous foggy
        gentle golden green happy hidden hollow humble icy jolly kind late lazy little lonely lucky mellow merry misty
        modern narrow noble odd pale patient plain polite proud purple quiet rapid rare round rusty secret sharp shy
        silent simple slow small smooth solid steady strange sunny sweet swift tall tiny vast warm wild wise young
        """
    ),
    "zh": _listed(
        """
        金色 银色 古老 勇敢 明亮 安静 聪明 寒冷 好奇 温柔 隐秘 空旷 幸运 快乐 孤独 朦胧 狭窄 高贵 苍白
        耐心 骄傲 紫色 稀有 圆形 生锈 神秘 锋利 害羞 简单 缓慢 光滑 坚固 奇特 晴朗 甜美 迅速 高大 微小
        辽阔 温暖 狂野 智慧 年轻 平静
        """
    ),
}

SYLLABLES = {
    "en": _listed("ba ce di fo gu ha je ki lo mu na pe qui ro su ta ve wi xo zu"),
    "zh": _listed("阿 贝 卡 达 艾 法 加 哈 伊 库 拉 玛 尼 欧 帕 奇 瑞 萨 塔 维"),
}
"""For words that mean nothing."""
